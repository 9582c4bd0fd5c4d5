"""Where a run's wall time went, over all its sessions, from the lines that their ledgers left in `goodput.jsonl`."""

import itertools
import json
from pathlib import Path
from typing import Any

from assay.runs.directory import RunDirectory
from assay.train.ledger import NAME, PHASES

PARTS = (*PHASES, "restart", "repeated")


def goodput(run: RunDirectory) -> dict[str, float] | None:
    """Seconds by part, and "wall", from the first session's process to the last line; None for a run without a ledger.

    The parts sum to wall. restart: between the last line of a session and the next one's process, with what SIGKILL took.
    repeated: of "step", the share of steps that the next session did again; it is taken out of "step".
    """
    sessions = _sessions(run.path / NAME)
    if not sessions:
        return None
    parts = dict.fromkeys(PARTS, 0.0)
    for lines in sessions:
        for name in PHASES:
            parts[name] += lines[-1][name]
    for before, after in itertools.pairwise(sessions):
        parts["restart"] += after[0]["start"] - before[-1]["time"]
        done = before[-1]["steps_done"] - before[0]["steps_done"]
        again = max(0, before[-1]["steps_done"] - after[0]["steps_done"])
        repeated = before[-1]["step"] * min(1.0, again / done) if done > 0 else 0.0
        parts["repeated"] += repeated
        parts["step"] -= repeated
    return {"wall": sessions[-1][-1]["time"] - sessions[0][0]["start"], **parts}


def _sessions(path: Path) -> list[list[dict[str, Any]]]:
    """The lines of each session, in order. A line that a crash left unfinished is passed over."""
    sessions: list[list[dict[str, Any]]] = []
    if not path.exists():
        return sessions
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not sessions or sessions[-1][0]["start"] != line["start"]:
            sessions.append([])
        sessions[-1].append(line)
    return sessions
