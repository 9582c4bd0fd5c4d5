"""A tracker that appends what it receives to a file, one JSON object a line."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np


@dataclasses.dataclass(kw_only=True)
class MyPlugin:
    """Writes `my_plugin.jsonl` into the run directory. A tracker may fail: the run goes on, and its own log is whole."""

    _file: TextIO = dataclasses.field(init=False, repr=False)

    def available(self) -> bool:
        """Nothing has to be installed."""
        return True

    def start(self, run_directory: Path, record: Mapping[str, Any], *, resumed: bool) -> None:
        """Begin the file, or go on with it."""
        self._file = (run_directory / "my_plugin.jsonl").open("a" if resumed else "w", encoding="utf-8")
        self._write(event="start", run=record.get("id"))

    def scalars(self, step: int, values: Mapping[str, float], context: str) -> None:
        """One line for all numbers of a step."""
        self._write(event="scalars", step=step, context=context, values=dict(values))

    def text(self, step: int, name: str, value: str) -> None:
        """The text itself."""
        self._write(event="text", step=step, name=name, value=value)

    def image(self, step: int, name: str, value: np.ndarray) -> None:
        """Its shape; the run directory has the pixels."""
        self._write(event="image", step=step, name=name, shape=list(value.shape))

    def figure(self, step: int, name: str, value: Any) -> None:
        """Its name; the run directory has the figure."""
        self._write(event="figure", step=step, name=name)

    def flush(self) -> None:
        """Everything so far is on disk when this returns, so that a kill loses none of it."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, status: str) -> None:
        """The last line."""
        self._write(event="finish", status=status)
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._file.write(json.dumps(fields) + "\n")
