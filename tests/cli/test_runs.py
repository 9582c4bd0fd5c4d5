"""`assay runs`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from assay import registry, runs
from assay.cli import main
from assay.cli.runs import age
from assay.runs.metrics import MetricsStore, row


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run = runs.create(tmp_path, "lm_code", steps=10)
    with run.session() as session:
        store = MetricsStore(run.metrics)
        store.append([row(10, "train", 0.0, {"loss": math.nan}), row(10, "validation", 0.0, {"loss": 2.0})])
        store.close()
        session.step = 10
    runs.create(tmp_path, "other")
    return tmp_path


def test_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--root", str(root)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["RUN", "EXPERIMENT", "STATUS", "STEP", "LOSS", "VALIDATION", "AGE"]
    assert first.split()[1:6] == ["lm_code", "completed", "10/10", "nan", "2.0000"]
    assert second.split()[1:3] == ["other", "new"]


def test_json_is_strict(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_RUNS", str(root))
    assert main(["runs", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["status"], first["step"], first["steps"], first["loss"]) == ("completed", 10, 10, "NaN")
    assert second["loss"] is None


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--root", str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert main(["runs", "--root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


class Recorder:
    """Remembers what it was sent."""

    log: ClassVar[list[Any]] = []

    def available(self) -> bool:
        return True

    def start(self, run_directory: Path, record: Mapping[str, Any], *, resumed: bool) -> None:
        self.log.append(record["name"])

    def scalars(self, step: int, values: Mapping[str, float], context: str) -> None:
        self.log.append((step, context, sorted(values)))

    def flush(self) -> None:
        pass

    def finish(self, status: str) -> None:
        self.log.append(status)


def test_sync_sends_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with registry.temporary("tracker", "recorder", Recorder):
        assert main(["runs", "--root", str(root), "--sync", "lm_code", "--to", "recorder"]) == 0
    assert "sent 2 entries" in capsys.readouterr().out
    assert Recorder.log == ["lm_code", (10, "train", ["loss"]), (10, "validation", ["loss"]), "completed"]


def test_sync_of_what_is_not_there(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry.temporary("tracker", "recorder", Recorder):
        assert main(["runs", "--root", str(root), "--sync", "nothing", "--to", "recorder"]) == 1
        assert "no run 'nothing'" in capsys.readouterr().err
        monkeypatch.setattr(Recorder, "available", lambda self: False)
        assert main(["runs", "--root", str(root), "--sync", "latest", "--to", "recorder"]) == 1
        assert "not installed" in capsys.readouterr().err


def test_ages() -> None:
    assert [age(s) for s in (None, -1, 50, 150, 7300, 200_000)] == ["", "0s", "50s", "2m", "2h", "2d"]
