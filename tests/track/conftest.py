"""A run to log to, and a tracker that remembers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import runs
from assay.runs.directory import RunDirectory


class Memory:
    """A tracker in memory."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def available(self) -> bool:
        return True

    def start(self, run_directory: Path, record: Mapping[str, Any], *, resumed: bool) -> None:
        self.calls.append(("start", run_directory.name, record["config"], resumed))

    def scalars(self, step: int, values: Mapping[str, float], context: str) -> None:
        self.calls.append((context, step, dict(values)))

    def text(self, step: int, name: str, value: str) -> None:
        self.calls.append(("text", step, name, value))

    def image(self, step: int, name: str, value: np.ndarray) -> None:
        self.calls.append(("image", step, name, value.tolist()))

    def figure(self, step: int, name: str, value: Any) -> None:
        self.calls.append(("figure", step, name, value))

    def flush(self) -> None:
        self.calls.append("flush")

    def finish(self, status: str) -> None:
        self.calls.append(("finish", status))


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run in whose session the test is."""
    directory = runs.create(tmp_path, "a", config={"experiment.seed": 1})
    with directory.session():
        yield directory
