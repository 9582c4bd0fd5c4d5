"""What a result depends on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from assay import runs
from assay.runs.facts import git_facts


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "-C", str(directory), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_TEST_FLAG", "1")
    found = runs.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["flags"]["JAX_TEST_FLAG"] == "1"
    assert found["flags"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert found["packages"]["jax"] == jax.__version__
    assert found["plugins"]["assay"]
    assert found["devices"] == {"platform": "cpu", "kind": "cpu", "count": jax.device_count(), "processes": 1}
    assert found["jax"]["jax_threefry_partitionable"] is True


def test_every_difference_from_the_commit_changes_the_hash(repository: Path) -> None:
    clean = git_facts(repository)
    assert clean is not None
    assert clean["diff"] is None
    assert len(clean["commit"]) == 40
    (repository / "file").write_text("two")
    changed = git_facts(repository)
    (repository / "new").write_text("")
    added = git_facts(repository)
    assert changed is not None
    assert added is not None
    assert len({clean["diff"], changed["diff"], added["diff"]}) == 3
    assert added["untracked"] == 1


def test_without_git_there_are_no_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_facts(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_facts(tmp_path) is None


def test_the_run_directory_needs_no_jax() -> None:
    code = "import sys, assay.runs, assay.cli.runs; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
