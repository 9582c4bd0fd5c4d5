"""Assay and a third-party plugin as a user gets them: two wheels in a clean environment, from the lock, without pytest."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins/example-plugin"


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """The output of a command, which must succeed."""
    hidden = ("XLA_FLAGS", "JAX_NUMPY_RANK_PROMOTION", "VIRTUAL_ENV", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | variables
    found = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel of each distribution."""
    place = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, EXAMPLE):
        run(
            sys.executable,
            "-m",
            "uv",
            "build",
            "--wheel",
            "--no-build-isolation",
            "--out-dir",
            place,
            source,
            cwd=place,
        )
    return sorted(place.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheels, tmp_path_factory):
    """The `bin` of an environment with the locked dependencies, less pytest, and both wheels."""
    place = tmp_path_factory.mktemp("clean")
    uv, python = (sys.executable, "-m", "uv", "pip"), place / "venv/bin/python"
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    run(*uv, "sync", "--python", python, "--require-hashes", ROOT / "requirements.lock", cwd=place)
    run(*uv, "uninstall", "--python", python, "pytest", "pytest-xdist", "pytest-timeout", cwd=place)
    run(*uv, "install", "--python", python, "--no-deps", *wheels, cwd=place)
    return python.parent


@pytest.mark.slow
def test_the_wheel_holds_what_the_commands_need(wheels) -> None:
    names = zipfile.ZipFile(wheels[0]).namelist()
    ours = ("assay/", "assay_kernels/", "assay_export/", "assay_plugins/", "assay-")
    needed = {"assay/templates/model.py", "assay/testing/model.py", "assay/py.typed", "assay_plugins/configs/gpt2.gin"}
    assert needed - {*names} == set()
    assert [n for n in names if not n.startswith(ours)] == []


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["model.example_linear", "dataset.example_iris", "metric.example_mean_rank"])
def test_a_third_party_plugin_passes_its_checks_without_pytest(plugin, clean, tmp_path) -> None:
    quick = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    out = run(clean / "assay", "plugin", "check", plugin, cwd=tmp_path, XLA_FLAGS=quick)
    assert " passed" in out.splitlines()[-1]


@pytest.mark.slow
def test_a_third_party_plugin_trains(clean, tmp_path) -> None:
    out = run(clean / "assay", "run", EXAMPLE / "example.gin", cwd=tmp_path)
    values = dict(line.split() for line in out.splitlines() if line.startswith("validation/"))
    assert float(values["validation/accuracy"]) > 0.9
    assert 1.0 <= float(values["validation/mean_rank"]) < 1.2
