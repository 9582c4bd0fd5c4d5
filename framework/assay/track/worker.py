"""One tracker in one thread behind a bounded queue: it may be slow, hang or raise, and the run neither waits nor stops."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assay import registry
from assay.kinds import Tracker
from assay.track.entries import Entry, hand_over

CAPACITY = 10_000  # entries waiting; the local store has them all


class Worker:
    """Starts the tracker in a thread and hands it what `put` is given. `report` is told once of each kind of trouble."""

    def __init__(
        self, tracker: Tracker, directory: Path, record: Mapping[str, Any], resumed: bool, report: Callable[[str], None]
    ) -> None:
        self.name = selector(tracker)
        self._tracker, self._report = tracker, report
        self._start: Callable[[], None] = lambda: tracker.start(directory, record, resumed=resumed)
        self._run_id = directory.name
        self._queue: queue.SimpleQueue[Entry | _Finish] = queue.SimpleQueue()
        self._lost = 0
        self._failed = False
        # A daemon: a tracker that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=f"assay-{self.name}", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queue an entry; never waits. With the queue full it is lost to this tracker, which is reported."""
        if self._failed:
            return
        if self._queue.qsize() < CAPACITY:
            self._queue.put(entry)
            return
        self._lost += 1
        if self._lost == 1:
            self._report(
                f"{self.name} is too slow: {CAPACITY} entries wait, and further ones are not sent; {self._hint()}"
            )

    def finish(self, status: str) -> None:
        """Ask the tracker to end its run when it has everything that waits. Does not wait itself."""
        self._queue.put(_Finish(status))

    def join(self, deadline: float) -> None:
        """Wait for that until `deadline` (time.monotonic). Reports what was lost."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._failed:
            return
        if self._thread.is_alive():
            self._failed = True
            self._report(f"{self.name} did not finish in time, with {self._queue.qsize()} entries left; {self._hint()}")
        elif self._lost:
            self._report(f"{self.name} did not get {self._lost} entries; {self._hint()}")

    def _work(self) -> None:
        try:
            self._start()
            while not isinstance(entry := self._queue.get(), _Finish):
                hand_over(entry, self._tracker)
            self._tracker.flush()
            self._tracker.finish(entry.status)
        except BaseException as error:  # a tracker that calls sys.exit has failed too
            given_up, self._failed = self._failed, True
            if not given_up:
                self._report(
                    f"{self.name} failed and is off from now on: {type(error).__name__}: {error}; {self._hint()}"
                )

    def _hint(self) -> str:
        name = self.name.removeprefix("tracker.")
        return f"the run directory has everything, and `assay runs --sync {self._run_id} --to {name}` sends it again"


class _Finish:
    """The last thing in a queue."""

    def __init__(self, status: str) -> None:
        self.status = status


def selector(tracker: Tracker) -> str:
    """The tracker's name among plugins, such as "tracker.aim"; of one that is not registered, its class."""
    target = f"{type(tracker).__module__}:{type(tracker).__qualname__}"
    return next((e.selector for e in registry.entries("tracker") if e.target == target), type(tracker).__qualname__)
