"""The progress line: rewritten in place on a terminal, one line each now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

INTERVAL_TERMINAL = 0.2
INTERVAL_FILE = 10.0


class Status:
    """One line that says what is being done, on stderr. A context manager, which takes the line away. quiet: prints nothing."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream, self._quiet = stream or sys.stderr, quiet
        self._terminal = self._stream.isatty()
        self._last = 0.0
        self._open = False

    def show(self, text: str, *, force: bool = False) -> None:
        """Show `text` in place of what is shown, unless that was shown a moment ago."""
        now = time.monotonic()
        if self._quiet or (not force and now - self._last < (INTERVAL_TERMINAL if self._terminal else INTERVAL_FILE)):
            return
        self._last = now
        self._stream.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        self._stream.flush()
        self._open = self._terminal

    def line(self, text: str) -> None:
        """Print a line of its own, above the progress line."""
        if self._quiet:
            return
        self.clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Take the line away, for other output."""
        if self._open:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()


class Progress(Status):
    """Prints where a run is. Rates come from the steps of this session alone. quiet: prints nothing (all processes but the first)."""

    def __init__(self, total: int, unit: str, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        super().__init__(stream, quiet=quiet)
        self._total, self._unit = total, unit

    def update(
        self, step: int, loss: float, rate: float | None, seconds_per_step: float | None, *, force: bool = False
    ) -> None:
        """Show step, loss, rate (units per second) and the time left, unless it was shown a moment ago."""
        parts = [f"step {step}/{self._total}", f"loss {loss:.4f}"]
        if rate is not None and seconds_per_step is not None:
            parts += [f"{readable(rate)} {self._unit}/s", f"ETA {duration((self._total - step) * seconds_per_step)}"]
        self.show("  ".join(parts), force=force)


def readable(value: float) -> str:
    """A count with a metric suffix: 18211 -> "18.2k".

    >>> readable(18211), readable(950), readable(3.1e9)
    ('18.2k', '950', '3.1G')
    """
    for power, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.1f}{suffix}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> duration(75), duration(3671)
    ('1:15', '1:01:11')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
