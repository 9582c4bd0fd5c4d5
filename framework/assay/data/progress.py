"""One line on stderr for preparing data, shown only when it takes long enough to be wondered about."""

import sys
import time
from types import TracebackType

QUIET_SECONDS = 2.0


class Progress:
    """`with Progress("tokenising train", "characters") as done: done(1000)`. Redraws on a terminal, else a line now and then."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit, self._count = what, unit, 0
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._due = self._started + QUIET_SECONDS
        self._shown = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and kind is None:
            self._show("\n")

    def __call__(self, count: int) -> None:
        """Count `count` more units."""
        self._count += count
        now = time.monotonic()
        if now >= self._due:
            self._due = now + (0.5 if self._terminal else 10.0)
            self._show("" if self._terminal else "\n")

    def _show(self, end: str) -> None:
        self._shown = True
        seconds = time.monotonic() - self._started
        rate = self._count / max(seconds, 1e-9)
        start = "\r" if self._terminal else ""
        text = f"{start}{self._what}: {self._count:,} {self._unit} in {seconds:.0f} s ({rate:,.0f}/s)"
        print(text, end=end, file=sys.stderr, flush=True)
