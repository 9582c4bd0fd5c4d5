"""The conformance kit of trackers."""

import contextlib
import importlib
import importlib.util
import math
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np

from assay import runs
from assay.kinds import Tracker
from assay.runs.directory import RunDirectory
from assay.runs.metrics import read_metrics
from assay.testing.kit import Kit, check, skip
from assay.track import Fanout

CONFIG: Mapping[str, Any] = {
    "experiment.seed": 0,
    "experiment.evaluate_splits": ["validation"],
    "model.mlp.hidden": [16, 16],
    "model.mlp.dropout": 0.1,
    "optimizer.adamw.clip_norm": None,
}
STEPS = 20
AVAILABLE_SECONDS = 1.0
CHILD = "from assay.testing.tracker import log_until_killed; log_until_killed()"


class TrackerKit(Kit):
    """Checks of a tracker plugin. They write short runs into temporary directories, and into the backend that the plugin names.

    broken(): the plugin with its backend made to fail; by default one that fails after the first entries.
    logged(run_directory): what the backend holds of a run; without it the checks that read back are skipped.
    patience: seconds that the backend may take to start and to end.
    """

    kind = "tracker"
    patience: ClassVar[float] = 120.0

    def plugin(self) -> Tracker:
        """The tracker to check, as it is before its start."""
        return super().plugin()

    def broken(self) -> Tracker:
        """The tracker with a backend that fails: an address where nothing answers, a folder that may not be written."""
        return _Failing(self.plugin())

    def logged(self, run_directory: Path) -> Iterable[tuple[int, str, float]]:
        """(step, "context/name", value) of every number that the backend holds of the run, an earlier value of a step before a later."""
        skip("nothing reads the backend: define logged(self, run_directory) in a test class")

    @check
    def test_available_is_cheap_and_never_raises(self) -> None:
        """`available` answers True or False at once, without an import, whatever is installed."""
        tracker = self.plugin()
        before, begun = set(sys.modules), time.perf_counter()
        answer = tracker.available()
        seconds = time.perf_counter() - begun
        new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
        assert isinstance(answer, bool), f"available() gives {answer!r}; it must be True or False"
        assert not new, f"available() imports {', '.join(sorted(new))}; ask importlib.util.find_spec, import in `start`"
        assert seconds < AVAILABLE_SECONDS, f"available() takes {seconds:.1f} s, and every run asks it"
        with mock.patch("importlib.util.find_spec", _nothing_is_installed):
            try:
                self.plugin().available()
            except Exception as error:
                raise AssertionError(
                    f"available() raises {type(error).__name__} where nothing is installed: {error}"
                ) from error

    @check
    def test_a_run_is_logged_from_start_to_finish(self) -> None:
        """It takes numbers, texts, grey and coloured images and figures."""
        with _run() as run:
            self._whole_life(run)

    @check
    def test_any_thread_may_call_it(self) -> None:
        """All calls may come from a thread that is not the main one, as they do in training."""
        trouble: list[BaseException] = []

        def work(run: RunDirectory) -> None:
            try:
                self._whole_life(run)
            except BaseException as error:  # a skip too
                trouble.append(error)

        with _run() as run:
            thread = threading.Thread(target=work, args=(run,), daemon=True)
            thread.start()
            thread.join(self.patience)
            assert not thread.is_alive(), f"in a thread it is not done after {self.patience:.0f} s"
        if trouble:
            raise trouble[0]

    @check
    def test_the_backend_holds_what_was_logged(self) -> None:
        """Each number is there, under its step, context and name, and no other."""
        with _run() as run:
            self._log(run, range(STEPS), "completed")
            self._compare(run, {step: float(step) for step in range(STEPS)})

    @check
    def test_values_that_are_not_finite_are_accepted(self) -> None:
        """NaN and infinities do no harm, are not held as finite numbers, and the values beside them are there."""
        odd = {"a": math.nan, "b": math.inf, "c": -math.inf}
        with _run() as run:
            tracker = self._started(run)
            tracker.scalars(1, odd | {"loss": 2.0}, "train")
            tracker.flush()
            tracker.finish("completed")
            if not self._reads:
                return
            held = self._held(run)
            assert held.get((1, "train/loss")) == 2.0, "a finite value was lost beside others that are not"
            for name, value in odd.items():
                found = held.get((1, f"train/{name}"), value)
                assert str(found) == str(value), f"{value} is held as {found}"

    @check
    def test_a_resumed_run_goes_on(self) -> None:
        """Started again with resumed=True it adds to the same run, and a later value of a step replaces the earlier one."""
        with _run() as run:
            self._log(run, range(6), "interrupted")
            self._log(run, range(4, 10), "failed", resumed=True, shift=0.5)
            self._compare(run, {step: step + (0.5 if step >= 4 else 0.0) for step in range(10)})

    @check
    def test_a_failing_backend_leaves_the_run_alone(self) -> None:
        """When the backend fails, the run's own log is whole and the trouble is reported once."""
        said: list[str] = []
        with _run() as run, run.session():
            tracking = Fanout(run, [self.broken()], report=said.append, finish_seconds=self.patience)
            for step in range(STEPS):
                tracking.scalars(step, {"loss": float(step)}, "train")
            tracking.finish("completed")
            rows = [row["step"] for row in read_metrics(run.metrics) if row["context"] == "train"]
        assert rows == list(range(STEPS)), f"the run directory has steps {rows}, logged were 0 to {STEPS - 1}"
        assert said, "nothing is reported; let the backend's errors out of the tracker, the core catches them"
        assert len(said) == 1, f"the trouble is reported {len(said)} times: {said}"

    @check
    def test_nothing_is_lost_in_a_kill_after_flush(self) -> None:
        """What was logged before `flush` is there after the process was killed."""
        tracker = self._usable()
        if not self._reads:
            self.logged(Path())
        with _run() as run:
            flushed = run.path / "flushed"
            with _child(tracker, run, flushed) as child:
                _wait(child, flushed, self.patience)
                child.kill()
            self._compare(run, {step: float(step) for step in range(STEPS)}, "after a kill")

    @property
    def _reads(self) -> bool:
        return type(self).logged is not TrackerKit.logged

    def _usable(self) -> Tracker:
        tracker = self.plugin()
        if not tracker.available():
            skip("its backend is not installed here")
        return tracker

    def _started(self, run: RunDirectory, *, resumed: bool = False) -> Tracker:
        tracker = self._usable()
        tracker.start(run.path, run.record(), resumed=resumed)
        return tracker

    def _whole_life(self, run: RunDirectory) -> None:
        tracker = self._started(run)
        tracker.scalars(1, {"loss": 2.0, "accuracy": 0.5}, "train")
        tracker.scalars(1, {"loss": 2.5}, "validation")
        tracker.text(1, "sample_0", "Grüße,\n\twith \"quotes\" and '{}'")
        tracker.image(1, "grey", np.arange(20, dtype=np.uint8).reshape(4, 5, 1))
        tracker.image(1, "validation/errors", np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
        for figure in _figures():
            tracker.figure(1, "curve", figure)
        tracker.flush()
        tracker.scalars(2, {"loss": 1.5}, "train")
        tracker.finish("completed")

    def _log(self, run: RunDirectory, steps: range, status: str, *, resumed: bool = False, shift: float = 0.0) -> None:
        """A session in which the loss of each step is the step, plus `shift`."""
        tracker = self._started(run, resumed=resumed)
        log_steps(tracker, steps, shift)
        tracker.flush()
        tracker.finish(status)

    def _held(self, run: RunDirectory) -> dict[tuple[int, str], float]:
        return {(int(step), name): float(value) for step, name, value in self.logged(run.path)}

    def _compare(self, run: RunDirectory, losses: Mapping[int, float], when: str = "") -> None:
        """Raise AssertionError unless the backend holds `losses` by step, in both contexts, and nothing else of that name."""
        held = self._held(run)
        wanted = {(step, f"{c}/loss"): loss for step, loss in losses.items() for c in ("train", "validation")}
        missing = [key for key in wanted if key not in held]
        assert not missing, f"{len(missing)} of {len(wanted)} numbers are lost {when}, such as {_shown(missing[0])}"
        more = [key for key in held if key not in wanted]
        assert not more, f"the backend holds what was not logged, such as {_shown(more[0])}"
        wrong = [key for key, loss in wanted.items() if not math.isclose(held[key], loss, rel_tol=1e-6)]
        assert not wrong, f"{_shown(wrong[0])} is held as {held[wrong[0]]}, logged was {wanted[wrong[0]]}"


def log_steps(tracker: Tracker, steps: range, shift: float = 0.0) -> None:
    """Log the loss step + `shift` of each step, in two contexts."""
    for step in steps:
        for context in ("train", "validation"):
            tracker.scalars(step, {"loss": step + shift}, context)


def log_until_killed() -> None:
    """What the process of `_child` does: start the tracker that comes through stdin, log, flush, say so, and wait."""
    module, file, pickled, directory, flushed = pickle.load(sys.stdin.buffer)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:  # a test file that pytest imported by its path
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None, file
        assert spec.loader is not None, file
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    tracker = pickle.loads(pickled)
    tracker.start(directory, RunDirectory(directory).record(), resumed=False)
    log_steps(tracker, range(STEPS))
    tracker.flush()
    flushed.touch()
    threading.Event().wait()


class _Failing:
    """A tracker whose backend ends and fails after the first entries."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def available(self) -> bool:
        return True

    def start(self, run_directory: Path, record: Mapping[str, Any], *, resumed: bool) -> None:
        self._tracker.start(run_directory, record, resumed=resumed)

    def scalars(self, step: int, values: Mapping[str, float], context: str) -> None:
        if step >= STEPS // 2:
            self._refuse()
        self._tracker.scalars(step, values, context)

    def _refuse(self, *args: Any) -> None:
        self._tracker.finish("failed")  # what a backend leaves open would go on in a directory that is gone
        raise OSError("the backend has failed, for a test")

    text: Callable[..., None] = _refuse
    image: Callable[..., None] = _refuse
    figure: Callable[..., None] = _refuse
    flush: Callable[..., None] = _refuse
    finish: Callable[..., None] = _refuse


@contextlib.contextmanager
def _run() -> Iterator[RunDirectory]:
    """A new run in a directory that is removed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a backend may still be writing
        yield runs.create(Path(folder), "kit", config=dict(CONFIG))


@contextlib.contextmanager
def _child(tracker: Tracker, run: RunDirectory, flushed: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that logs to `tracker`, makes the file `flushed`, and waits to be killed. Its stderr goes to a file."""
    module = type(tracker).__module__
    try:
        pickled = pickle.dumps(tracker)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        skip(f"the tracker cannot be sent to another process: {error}; define its class in a module")
    order = pickle.dumps((module, getattr(sys.modules[module], "__file__", None), pickled, run.path, flushed))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (run.path / "stderr.txt").open("wb") as errors:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": errors}
        with subprocess.Popen([sys.executable, "-c", CHILD], env=environment, **pipes) as child:
            try:
                assert child.stdin is not None
                child.stdin.write(order)
                child.stdin.close()
                yield child
            finally:
                child.kill()


def _wait(child: "subprocess.Popen[bytes]", flushed: Path, patience: float) -> None:
    """Return when the file is there. Raise AssertionError when the process ends before, or takes too long."""
    deadline = time.monotonic() + patience
    while not flushed.exists():
        words = (flushed.parent / "stderr.txt").read_text(errors="replace").strip().splitlines()[-1:]
        assert child.poll() is None, f"in a process of its own it fails: {' '.join(words)}"
        assert time.monotonic() < deadline, f"in a process of its own it has not flushed after {patience:.0f} s"
        time.sleep(0.05)


def _figures() -> Iterator[Any]:
    """One figure of each library that is installed."""
    if importlib.util.find_spec("matplotlib") is not None:
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(1, 1), dpi=20)
        figure.subplots().plot([1, 2])
        yield figure
    if importlib.util.find_spec("plotly") is not None:
        yield importlib.import_module("plotly.graph_objects").Figure()


def _nothing_is_installed(name: str, package: str | None = None) -> None:
    """importlib.util.find_spec on a machine without any package."""
    if "." in name:
        raise ModuleNotFoundError(f"No module named '{name.partition('.')[0]}'")


def _shown(key: tuple[int, str]) -> str:
    return f"{key[1]} of step {key[0]}"
