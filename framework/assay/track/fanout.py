"""Takes what a run logs off the training loop's hands: a thread writes it to the run directory, then trackers get it.

The loop may hand over device arrays that are still being computed: their copies to the host are started at once, and only the
thread waits for them. The run directory's store is written first, in the order of the calls, and is the truth.
"""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from assay import registry
from assay.errors import PluginError, RunError
from assay.kinds import Tracker
from assay.runs.directory import RunDirectory
from assay.runs.metrics import RESERVED, MetricsStore, row
from assay.track.entries import Entry, Image, Scalars, Text
from assay.track.media import rendered, write_media
from assay.track.replay import rewind
from assay.track.system import SystemStatistics
from assay.track.worker import Worker

if TYPE_CHECKING:
    import jax

    Value = float | jax.Array | np.ndarray

FINISH_SECONDS = 30.0  # a short run may end while Aim is still being imported
SYSTEM_SECONDS = 10.0
_BATCH = 1000  # pieces of work taken from the queue at once, at most


def to_stderr(message: str) -> None:
    """Print a warning."""
    print(f"assay: {message}", file=sys.stderr, flush=True)


class Fanout:
    """The log of one session of a run, to be made while the run's session is held.

    trackers: plugins that get everything too; one that fails is reported, switched off, and can be fed later by `replay`.
    primary: False in all processes but the first of a run of several: nothing is written then.
    report: is told of trouble with trackers, from any thread; log.txt has it too.
    system_seconds: between two rows of the context "system".
    finish_seconds: that `finish` waits for all trackers together.

    A call raises RunError when something logged before could not be written to the run directory.
    """

    def __init__(
        self,
        run: RunDirectory,
        trackers: Sequence[Tracker] = (),
        *,
        primary: bool = True,
        report: Callable[[str], None] = to_stderr,
        system_seconds: float = SYSTEM_SECONDS,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self._run, self._primary, self._finish_seconds = run, primary, finish_seconds
        self._print = report
        if not primary:
            return
        record = run.record()
        self._store = MetricsStore(run.metrics)
        resumed = len(record["sessions"]) > 1
        self._workers = [Worker(tracker, run.path, record, resumed, self._report) for tracker in trackers]
        self._queue: queue.SimpleQueue[Callable[[], Iterator[Entry]] | threading.Event | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._step: int | None = None
        self._thread = threading.Thread(target=self._work, name="assay-log", daemon=True)
        self._thread.start()
        self._system = SystemStatistics(self._log_system, system_seconds)

    def scalars(self, step: int, values: Mapping[str, "Value"], context: str) -> None:
        """Log numbers of one step: floats, or arrays of one element. Returns at once.

        A value named "step", "context" or "time", as the store's own columns are, gets an underscore at its end.
        """
        self.scalars_many([step], values, context)

    def scalars_many(self, steps: Sequence[int], values: Mapping[str, "Value"], context: str) -> None:
        """Log numbers of `steps`, ascending, from arrays of shape (len(steps),). Returns at once."""
        taken, now = dict(values), time.time()
        for value in taken.values():
            if hasattr(value, "copy_to_host_async"):
                value.copy_to_host_async()
        self._put(lambda: _unstacked(steps, taken, context, now), steps[-1] if steps else None)

    def text(self, step: int, name: str, value: str) -> None:
        """Log a text sample, which becomes a file in `samples/` too."""
        self._put(lambda: iter([Text(step, name, value)]))

    def image(self, step: int, name: str, value: "jax.Array | np.ndarray") -> None:
        """Log an image, uint8 (height, width, 1 or 3), which becomes a file in `samples/` too."""
        self._put(lambda: iter([Image(step, name, _pixels(name, value))]))

    def figure(self, step: int, name: str, value: Any) -> None:
        """Log a matplotlib or plotly figure, which nobody may change from now on; it becomes a file in `samples/` too."""
        self._put(lambda: iter([rendered(step, name, value)]))

    def flush(self) -> None:
        """Return once everything logged is on disk in the run directory. Does not wait for trackers."""
        if self._primary:
            done = threading.Event()
            self._queue.put(done)
            done.wait()
            self._raise()

    def rewind(self, step: int) -> None:
        """Drop what was logged for later steps than `step`, which come again. Trackers keep what they have."""
        self._put(lambda: self._rewound(step), step)
        self.flush()

    def finish(self, status: str) -> None:
        """End the log: "completed", "interrupted" or "failed". Waits for trackers, but not for longer than `finish_seconds`."""
        if not self._primary:
            return
        self._system.stop()
        self._queue.put(None)
        self._thread.join()
        self._store.close()
        for worker in self._workers:
            worker.finish(status)
        deadline = time.monotonic() + self._finish_seconds
        for worker in self._workers:
            worker.join(deadline)
        self._raise()

    def _put(self, work: Callable[[], Iterator[Entry]], step: int | None = None) -> None:
        if not self._primary:
            return
        self._raise()
        with self._lock:
            self._queue.put(work)
            self._step = step if step is not None else self._step

    def _log_system(self, values: dict[str, float]) -> None:
        """One row for each step that was the last logged, so that no step has two."""
        with self._lock:
            step, self._step = self._step, None
            if step is not None:
                entry = Scalars(step, values, "system", time.time())
                self._queue.put(lambda: iter([entry]))

    def _rewound(self, step: int) -> Iterator[Entry]:
        self._store.close()
        rewind(self._run, step)
        self._store = MetricsStore(self._run.metrics)
        return iter(())

    def _work(self) -> None:
        """Until None comes: convert, write, hand on. After an error nothing more is written, but nobody waits in vain."""
        while (work := self._queue.get()) is not None:
            if isinstance(work, threading.Event):
                self._attempt(self._store.sync)
                work.set()
            else:
                self._attempt(lambda: self._write(list(work())))

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._error is None:
            try:
                action()
            except BaseException as error:
                self._error = error

    def _write(self, entries: list[Entry]) -> None:
        scalars = [entry for entry in entries if isinstance(entry, Scalars)]
        self._store.append(row(e.step, e.context, e.time, e.values) for e in scalars)
        for entry in entries:
            if not isinstance(entry, Scalars):
                write_media(self._run.samples, entry)
        for worker in self._workers:
            for entry in entries:
                worker.put(entry)

    def _raise(self) -> None:
        if self._error is not None:
            known = isinstance(self._error, RunError)
            message = str(self._error) if known else f"cannot log: {type(self._error).__name__}: {self._error}"
            raise RunError(message) from self._error

    def _report(self, message: str) -> None:
        with contextlib.suppress(OSError):  # a full disk, which the store reports
            self._run.log(message)
        self._print(message)


def installed_trackers(report: Callable[[str], None] = to_stderr) -> list[Tracker]:
    """Every tracker plugin whose backend can be used here, with its defaults. A broken one is reported and left out."""
    found = []
    for entry in registry.entries("tracker"):
        try:
            tracker = registry.load("tracker", entry.name)()
            if tracker.available():
                found.append(tracker)
        except Exception as error:
            cause = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            report(f"{entry.selector} is left out: {cause}")
    return found


def _unstacked(steps: Sequence[int], values: Mapping[str, "Value"], context: str, now: float) -> Iterator[Scalars]:
    """One entry for each step. Waits for device arrays."""
    columns = {}
    for name, value in values.items():
        column = np.asarray(value).astype(np.float64).reshape(-1)
        if len(column) != len(steps):
            raise ValueError(f"'{name}' in '{context}' has shape {np.shape(value)} for {len(steps)} steps")
        columns[f"{name}_" if name in RESERVED else name] = column.tolist()
    for i, step in enumerate(steps):
        yield Scalars(int(step), {name: column[i] for name, column in columns.items()}, context, now)


def _pixels(name: str, value: "jax.Array | np.ndarray") -> np.ndarray:
    pixels = np.asarray(value)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"image '{name}' is {pixels.dtype} {pixels.shape}; it must be uint8 (height, width, 1 or 3)")
    return pixels
