"""The runs below a root, each in one line. Of the metrics only the end of the file is read, so thousands of runs list quickly."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.errors import RunError
from assay.runs.directory import RunDirectory, run_directories
from assay.runs.metrics import read_backwards

TAIL = 1 << 20  # bytes of metrics.jsonl in which the last losses are looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """One run. `step` is the last that is known to be done, `steps` the experiment's; losses are the last logged.

    status: as RunDirectory.status, or "unreadable: …" with the reason. age: seconds since the run was made.
    """

    id: str
    name: str
    status: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    age: float | None = None


def summaries(root: Path) -> list[Summary]:
    """The runs below `root`, oldest first. A run that cannot be read is listed as such."""
    return [summary(run) for run in run_directories(root)]


def summary(run: RunDirectory) -> Summary:
    """One run's line."""
    try:
        record = run.record()
        last = _last_losses(run)
        ends = [s["step"] for s in record["sessions"][-1:] if s.get("step") is not None]
        return Summary(
            id=run.id,
            name=record["name"],
            status=run.status(),
            step=max([*ends, *(row["step"] for row in last.values())], default=None),
            steps=record.get("steps"),
            loss=last.get("train", {}).get("loss"),
            validation_loss=last.get("validation", {}).get("loss"),
            age=_seconds_since(record["created"]),
        )
    except RunError as error:
        return Summary(id=run.id, name="", status=f"unreadable: {error}")


def _last_losses(run: RunDirectory) -> Mapping[str, dict[str, Any]]:
    """The last rows of "train" and "validation" that have a loss."""
    found: dict[str, dict[str, Any]] = {}
    for row in read_backwards(run.metrics, TAIL):
        if row["context"] in ("train", "validation") and "loss" in row:
            found.setdefault(row["context"], row)
        if len(found) == 2:
            break
    return found


def _seconds_since(moment: str) -> float:
    return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)).total_seconds()
