"""Every second of a session is in exactly one phase, and what was written survives."""

import json
import os
import time

import pytest

from assay.runs.directory import RunDirectory
from assay.runs.goodput import PARTS, goodput
from assay.train.ledger import PHASES, Ledger, process_start


class Clock:
    def __init__(self, start):
        self.now = start

    def __call__(self):
        return self.now


def session(path, clock, steps, *, begun=0):
    """A session of which the test says how long each part takes."""
    ledger = Ledger(path, now=clock)
    ledger._start = ledger._since = clock.now
    ledger.steps_done = begun
    clock.now += 7
    with ledger.phase("compile"):
        clock.now += 3
    for _ in range(steps):
        with ledger.phase("step"):
            clock.now += 1
            with ledger.phase("data"):
                clock.now += 0.25
        ledger.steps_done += 1
        clock.now += 0.5
    ledger.write(force=True)
    return ledger


def test_phases_nest_and_sum_to_the_wall_time(tmp_path):
    session(tmp_path, Clock(1000.0), 10)
    found = goodput(RunDirectory(tmp_path))
    assert found == {
        "wall": 27.5, "startup": 7.0, "compile": 3.0, "step": 10.0, "data": 2.5, "other": 5.0,
        "evaluate": 0.0, "save": 0.0, "restart": 0.0, "repeated": 0.0,
    }  # fmt: skip


def test_a_second_session_adds_the_restart_and_what_was_done_twice(tmp_path):
    clock = Clock(1000.0)
    session(tmp_path, clock, 10)
    with (tmp_path / "goodput.jsonl").open("a") as file:
        file.write('{"start": 10')  # SIGKILL in the middle of a line
    with (tmp_path / "goodput.jsonl").open("a") as file:
        file.write("\n")
    clock.now += 30
    session(tmp_path, clock, 6, begun=6)
    found = goodput(RunDirectory(tmp_path))
    assert found["restart"] == 30
    assert found["repeated"] == pytest.approx(4.0)
    assert found["step"] == pytest.approx(12.0)
    assert sum(found[part] for part in PARTS) == pytest.approx(found["wall"])


def test_an_exception_ends_its_phase(tmp_path):
    clock = Clock(50.0)
    ledger = Ledger(tmp_path, now=clock)
    with pytest.raises(RuntimeError), ledger.phase("save"):
        raise RuntimeError
    before = ledger._seconds["save"]
    clock.now += 5
    ledger.write(force=True)
    assert ledger._seconds["save"] == before


def test_the_start_is_that_of_the_process(tmp_path):
    assert 0 < time.time() - process_start() < 36000
    ledger = Ledger(tmp_path)
    ledger.write(force=True)
    line = json.loads((tmp_path / "goodput.jsonl").read_text())
    assert line["pid"] == os.getpid()
    assert sum(line[name] for name in PHASES) == pytest.approx(line["time"] - line["start"])
