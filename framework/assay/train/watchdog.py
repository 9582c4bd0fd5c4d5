"""Ends a session that has stopped making steps, with the stacks of all its threads, so that a launcher can start it again."""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from assay.errors import EXIT_HUNG

LEAST_SECONDS = 60.0
LEAST_BEATS = 5
RECENT = 100


class Watchdog:
    """No step within `factor` times the median of the recent ones, and at least `least` seconds: stacks, then exit code 70.

    factor: None for no watch. directory: of the run, for hang.txt. Only the time inside `armed` counts.
    """

    def __init__(
        self, factor: float | None, directory: Path, report: Callable[[str], None], least: float = LEAST_SECONDS
    ) -> None:
        self._factor, self._path, self._report, self._least = factor, directory / "hang.txt", report, least
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._last = time.monotonic()
        self._timer: threading.Timer | None = None

    def beat(self, steps: int) -> None:
        """`steps` more are done."""
        now = time.monotonic()
        self._recent.append(now - self._last)
        self._last = now

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Watch while inside."""
        limit = self.limit
        if limit is None:
            yield
            return
        timer = threading.Timer(limit, self._hung, [limit])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @property
    def limit(self) -> float | None:
        """Seconds that a dispatch may take; None as long as there is no measure, and where nobody asked for the watch."""
        if self._factor is None or len(self._recent) < LEAST_BEATS:
            return None
        return max(self._least, self._factor * statistics.median(self._recent))

    def _hung(self, limit: float) -> None:
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        self._report(f"no step for {limit:.0f} s: stopping with exit code {EXIT_HUNG}; the stacks are in {self._path}")
        sys.stderr.flush()
        os._exit(EXIT_HUNG)
