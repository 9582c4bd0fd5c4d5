"""Where the seconds of a session go, from the start of its process: each one is in exactly one phase.

`goodput.jsonl` in the run directory has a line now and then with the seconds so far; what SIGKILL takes is what came after the last.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = "goodput.jsonl"
INTERVAL = 5.0
PHASES = ("startup", "compile", "data", "step", "evaluate", "save", "other")


class Ledger:
    """The clock of one session. What happens before the first `phase` is "startup", what happens between phases "other".

    primary: False in all processes but the first: nothing is written then. now: seconds since the epoch.
    """

    def __init__(self, directory: Path, *, primary: bool = True, now: Callable[[], float] = time.time) -> None:
        self._path, self._primary, self._now = directory / NAME, primary, now
        self._start = self._since = process_start()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phases = ["startup"]
        self._written = 0.0
        self.steps_done = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`, without that of phases further inside."""
        if self._phases == ["startup"]:
            self._turn(["other"])
        outer = self._phases
        self._turn([*outer, name])
        try:
            yield
        finally:
            self._turn(outer)
            self.write()

    def write(self, *, force: bool = False) -> None:
        """Add a line with the seconds so far and the steps done, unless one was added a moment ago."""
        now = self._now()
        if not self._primary or (not force and now - self._written < INTERVAL):
            return
        self._turn(self._phases)
        self._written = now
        line = {
            "start": self._start,
            "time": self._since,
            "pid": os.getpid(),
            "steps_done": self.steps_done,
            **self._seconds,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _turn(self, phases: list[str]) -> None:
        """Count the time since the last turn to the phase it was, and go on with another."""
        now = self._now()
        self._seconds[self._phases[-1]] += now - self._since
        self._since, self._phases = now, phases


def process_start() -> float:
    """When this process began, in seconds since the epoch; where the system does not say (not Linux), the time of the call."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.time()
