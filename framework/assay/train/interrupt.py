"""Signals and the time limit as a request that the loop answers at the next dispatch: checkpoint, then stop.

Python runs its signal handlers in the main thread, between two byte codes: never while XLA compiles or a device computes. So the
handlers here do nothing, and a thread reads the signals from a pipe that the interpreter's own C handler writes to at once.
"""

import contextlib
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from assay.errors import EXIT_INTERRUPTED, EXIT_REQUEUE

SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
)  # Slurm sends SIGUSR1 before its limit where --signal asks for it


class Abandoned(Exception):
    """Raised where work that can be done again gives way to a request to stop."""


class StopRequest:
    """Whether this session shall stop, and why: `reason` is a signal's name or "time limit".

    leave: whether there is nothing to save, so that a request ends the process at once. on_exit: called just before the process
    is ended at once, by a request then or by a second one at any time. held: a lock; who has it is not interrupted.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.leave = True
        self.on_exit: Callable[[], None] = lambda: None
        self.report: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
        self.deadline: float | None = None
        self.held = threading.RLock()
        self._wake = -1

    def __bool__(self) -> bool:
        return self.reason is not None

    @property
    def code(self) -> int:
        """The exit code of a session that ends for this reason."""
        return EXIT_INTERRUPTED if self.reason == "SIGINT" else EXIT_REQUEUE

    def limit(self, seconds: float | None) -> None:
        """Ask to stop `seconds` from now."""
        if seconds is not None:
            self.deadline = time.monotonic() + seconds
            if self._wake >= 0:
                os.write(self._wake, b"\0")  # the thread waits anew, until the deadline

    def ask(self, reason: str) -> None:
        """Ask to stop. A second call, or the first while there is nothing to save, ends the process."""
        with self.held:
            again, self.reason = self.reason is not None, self.reason or reason
            if again or self.leave:
                self.report(f"{reason}: stopping at once" + (", without a further checkpoint" if again else ""))
                self.on_exit()
                sys.stderr.flush()
                os._exit(self.code)
            self.report(f"{reason}: saving a checkpoint after this step, then stopping; a second signal stops at once")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle SIGINT, SIGTERM and SIGUSR1 while inside; in threads other than the main one nothing is handled."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    request._wake = writer
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer)
    watcher = threading.Thread(target=_watch, args=(request, reader), name="assay-signals", daemon=True)
    watcher.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        request._wake = -1
        os.close(writer)  # ends the thread
        watcher.join()
        os.close(reader)


def _watch(request: StopRequest, reader: int) -> None:
    """Hand on each signal read, and the deadline when it has come; until the pipe is closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while True:
            left = None if request.deadline is None else max(0.0, request.deadline - time.monotonic())
            if not selector.select(left):
                request.deadline = None
                if not request:
                    request.ask("time limit")
                continue
            found = os.read(reader, 64)
            if not found:
                return
            for number in found:
                if number in SIGNALS:
                    request.ask(signal.Signals(number).name)
