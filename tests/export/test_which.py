"""Commands on artifacts find the newest one of a run."""

import argparse
import os

import pytest

from assay import runs
from assay.errors import ExportError
from assay_export.cli.which import add_artifact, artifact_of


def found(root, which):
    parser = argparse.ArgumentParser()
    add_artifact(parser)
    return artifact_of(parser.parse_args([str(which), "--root", str(root)]))


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path, "small", config={})


def exported(run, name, age):
    place = run.path / "exports" / name
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    os.utime(place / "manifest.json", ns=(age, age))
    return place


def test_a_run_stands_for_its_newest_artifact(run, tmp_path) -> None:
    exported(run, "step-9", 1)
    newest = exported(run, "step-10", 2)
    (run.path / "exports" / ".step-11.half").mkdir()
    assert found(tmp_path, "latest") == newest
    assert found(tmp_path, run.path) == newest
    assert found(tmp_path, newest) == newest


def test_what_is_no_artifact_is_said(run, tmp_path) -> None:
    with pytest.raises(
        ExportError, match=f"run {run.id} has no artifact in its exports; `assay export {run.id}` makes one"
    ):
        found(tmp_path, "latest")
    with pytest.raises(ExportError, match="modell is neither an artifact's directory nor a run: "):
        found(tmp_path, "modell")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path, tmp_path / "empty") == tmp_path / "empty"  # reading its manifest says what is missing
