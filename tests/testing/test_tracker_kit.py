"""The conformance kit of trackers: Aim passes it, and each check catches the tracker that it is for."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import signal
import subprocess
import sys
import time
import unittest
from typing import Any

import pytest

from assay.testing import tracker as tracker_kit
from assay.testing.kit import run
from assay.testing.tracker import TrackerKit
from assay_plugins.trackers.aim import AimTracker

READER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from aim import Repo, Run
from aim.sdk.index_manager import RepoIndexManager
repo = Repo.from_path(sys.argv[1])
RepoIndexManager.get_index_manager(repo).index(sys.argv[2])  # of a killed run, which Aim's page would do
found = []
for metric in Run(sys.argv[2], repo=repo, read_only=True).metrics():
    steps, (values, _, _) = metric.data.items_list()
    name = f"{metric.context.to_dict()['subset']}/{metric.name}"
    found += [[int(step), name, value] for step, value in zip(steps, values)]
print(json.dumps(found))
"""


class AimKit(TrackerKit):
    def plugin(self):
        return AimTracker()

    def broken(self):
        return AimTracker(repo="/dev/null/store")

    def logged(self, run_directory):
        known = json.loads((run_directory / "trackers/aim.json").read_text())["hash"]
        words = [sys.executable, "-c", READER, str(run_directory.parent), known]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("aim") is None, reason="needs Aim")
def test_aim_passes():
    assert [(r.name, r.status, r.detail) for r in run(AimKit()) if r.status != "passed"] == []


@dataclasses.dataclass
class Lines:
    """Numbers, one JSON list a line, in the run's directory; and a place for one mistake."""

    flaw: str = ""
    _open: dict[str, Any] = dataclasses.field(init=False, default_factory=dict)

    def available(self):
        match self.flaw:
            case "slow":
                time.sleep(0.6)
            case "imports":
                importlib.import_module("toy_backend")
            case "raises":
                return importlib.util.find_spec("json").origin is not None
            case "raises for a part":
                return importlib.util.find_spec("json.decoder") is not None
            case "no answer":
                return None
        return True

    def start(self, run_directory, record, *, resumed):
        if self.flaw == "signal":
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        if self.flaw == "config":
            self._open["names"] = [name.upper() for name in record["config"].values()]
        name = "again" if self.flaw == "another run" and resumed else "lines"
        self._open["file"] = (run_directory / name).open("a" if resumed and self.flaw != "forgets" else "w")

    def scalars(self, step, values, context):
        finite = all(map(math.isfinite, values.values()))
        match self.flaw:
            case "finite":
                assert finite, values
            case "drops" if not finite:
                return
            case "zeros":
                values = {name: value if math.isfinite(value) else 0.0 for name, value in values.items()}
            case "contexts":
                context = "train"
            case "steps":
                step //= 2
            case "rounds":
                values = {name: 4.0 * round(value / 4) if finite else value for name, value in values.items()}
        for name, value in values.items():
            self._open["file"].write(json.dumps([step, f"{context}/{name}", value]) + "\n")

    def text(self, step, name, value):
        value.encode("ascii" if self.flaw == "ascii" else "utf-8")

    def image(self, step, name, value):
        assert value.shape[-1] == 3 or self.flaw != "grey"

    def figure(self, step, name, value):
        assert self.flaw != "figure"

    def flush(self):
        if self.flaw != "buffers":
            self._open["file"].flush()

    def finish(self, status):
        assert status == "completed" or self.flaw != "status"
        self._open["file"].close()

    def __del__(self):
        if "file" in self._open:
            self._open["file"].close()


class Silent(Lines):
    """Its backend fails, and it says nothing."""

    def scalars(self, step, values, context):
        with contextlib.suppress(OSError):
            raise OSError("no backend")


class LinesKit(TrackerKit):
    flaw = ""

    def plugin(self):
        return Lines(self.flaw)

    def broken(self):
        return Silent() if self.flaw == "silent" else super().broken()

    def logged(self, run_directory):
        return [json.loads(line) for line in (run_directory / "lines").read_text().splitlines()]


AVAILABLE = "test_available_is_cheap_and_never_raises"
LIFE = "test_a_run_is_logged_from_start_to_finish"
THREAD = "test_any_thread_may_call_it"
HELD = "test_the_backend_holds_what_was_logged"
FINITE = "test_values_that_are_not_finite_are_accepted"
RESUMED = "test_a_resumed_run_goes_on"
FAILING = "test_a_failing_backend_leaves_the_run_alone"
KILLED = "test_nothing_is_lost_in_a_kill_after_flush"
READING = {HELD, RESUMED, KILLED}
EVERY = {LIFE, THREAD, HELD, FINITE, RESUMED, KILLED}  # but the check with a backend that shall fail
MUTATIONS = {
    "slow": {AVAILABLE},
    "imports": {AVAILABLE},
    "raises": {AVAILABLE},
    "raises for a part": {AVAILABLE},
    "ascii": {LIFE, THREAD},
    "grey": {LIFE, THREAD},
    "figure": {LIFE, THREAD},
    "config": EVERY,
    "signal": {THREAD},
    "contexts": READING,
    "steps": {*READING, FINITE},
    "rounds": READING,
    "finite": {FINITE},
    "drops": {FINITE},
    "zeros": {FINITE},
    "forgets": {RESUMED},
    "another run": {RESUMED},
    "status": {RESUMED},
    "silent": {FAILING},
    "buffers": {KILLED},
}
CHECKS = {AVAILABLE, LIFE, THREAD, HELD, FINITE, RESUMED, FAILING, KILLED}
QUICK = CHECKS - {KILLED}  # which starts a process


@pytest.fixture(autouse=True)
def backend(tmp_path, monkeypatch):
    (tmp_path / "toy_backend.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_backend", raising=False)
    monkeypatch.setattr(tracker_kit, "AVAILABLE_SECONDS", 0.5)


def fails(kit, name):
    try:
        getattr(kit, name)()
    except (Exception, unittest.SkipTest) as error:
        return not isinstance(error, unittest.SkipTest)
    return False


def broken_kit(flaw):
    return type("Broken", (LinesKit,), {"flaw": flaw})()


def test_every_check_has_a_mutation():
    assert set(TrackerKit.checks()) == CHECKS == set().union(*MUTATIONS.values())


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_checks_and_by_no_other(flaw):
    kit = broken_kit(flaw)
    checks = [name for name in kit.checks() if name != KILLED]  # which starts a process
    assert {name for name in checks if fails(kit, name)} == MUTATIONS[flaw] - {KILLED}


def test_what_is_not_flushed_is_lost_in_a_kill():
    with pytest.raises(AssertionError, match="40 of 40 numbers are lost after a kill, such as train/loss of step 0"):
        getattr(broken_kit("buffers"), KILLED)()


def test_an_error_in_the_process_to_be_killed_is_told():
    with pytest.raises(
        AssertionError, match=r"in a process of its own it fails: AttributeError: .* has no attribute 'upper'"
    ):
        getattr(broken_kit("config"), KILLED)()


def test_a_backend_that_fails_at_once_is_survived_as_well():
    class Full(Lines):
        def start(self, run_directory, record, *, resumed):
            raise OSError("no room")

    getattr(type("Broken", (LinesKit,), {"broken": lambda self: Full()})(), FAILING)()


def test_without_a_reader_or_a_backend_checks_are_skipped_with_the_reason():
    class Unread(LinesKit):
        logged = TrackerKit.logged

    for name in READING:
        with pytest.raises(unittest.SkipTest, match="define logged"):
            getattr(Unread(), name)()
    getattr(Unread(), FINITE)()
    absent = type("Absent", (Lines,), {"available": lambda self: False})
    with pytest.raises(unittest.SkipTest, match="its backend is not installed here"):
        getattr(type("Missing", (LinesKit,), {"plugin": lambda self: absent()})(), THREAD)()


def test_a_tracker_that_cannot_be_sent_to_a_process_is_skipped_with_the_reason():
    class Local(Lines):
        pass

    with pytest.raises(unittest.SkipTest, match=r"cannot be sent to another process: .*; define its class in a module"):
        getattr(type("Here", (LinesKit,), {"plugin": lambda self: Local()})(), KILLED)()


class TestThroughPytest(LinesKit):
    """The door that authors use."""
