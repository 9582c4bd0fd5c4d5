"""What was logged can be sent again, and taken back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import runs
from assay.errors import RunError
from assay.runs.directory import RunDirectory
from assay.runs.metrics import read_metrics
from assay.track import Fanout, replay, rewind


def log(run: RunDirectory, trackers: list[Any]) -> None:
    tracking = Fanout(run, trackers)
    for step in range(1, 6):
        tracking.scalars(step, {"loss": step / 3, "bad": float("inf")}, "train")
    tracking.text(2, "sample_0", "early")
    tracking.text(4, "sample_0", "late")
    tracking.image(4, "grey", np.full((2, 3, 1), 7, np.uint8))
    tracking.finish("interrupted")


@pytest.fixture
def finished(tmp_path: Path, memory: Any) -> RunDirectory:
    run = runs.create(tmp_path, "a", config={})
    with run.session() as session:
        log(run, [memory])
        session.exit = "interrupted"
    return run


def test_a_replay_gives_what_the_tracker_got_at_first(finished: RunDirectory, memory: Any) -> None:
    late = type(memory)()
    assert replay(finished, late) == 8
    assert late.calls[0] == ("start", finished.id, {}, True)
    assert late.calls[1:6] == memory.calls[1:6]
    assert sorted(map(repr, late.calls[6:])) == sorted(map(repr, memory.calls[6:]))
    assert late.calls[-1] == ("finish", "interrupted")


def test_a_run_that_trains_is_not_replayed(run: RunDirectory, memory: Any) -> None:
    with pytest.raises(RunError, match="is training"):
        replay(run, memory)
    assert memory.calls == []


def test_a_run_without_anything_is_replayed_as_such(tmp_path: Path, memory: Any) -> None:
    assert replay(runs.create(tmp_path, "a", config={}), memory) == 0
    assert memory.calls[-1] == ("finish", "failed")


def test_rewinding_takes_back_later_steps(finished: RunDirectory) -> None:
    assert rewind(finished, 3) == 2
    assert [r["step"] for r in read_metrics(finished.metrics)] == [1, 2, 3]
    assert [p.name for p in finished.samples.iterdir()] == ["00000002-sample_0.txt"]
