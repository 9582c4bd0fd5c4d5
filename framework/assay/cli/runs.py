"""`assay runs`: the runs there are, and sending one to a tracker after the fact."""

import argparse
import dataclasses
from pathlib import Path

from assay.runs.directory import default_root, open_run, run_directories
from assay.runs.goodput import goodput
from assay.runs.index import Summary, summaries
from assay.runs.metrics import encode
from assay.table import table
from assay.train.progress import duration

HELP = (
    "List the runs there are, oldest first: status, step, last losses. With --goodput, where their time went. With --sync, send one "
    "to a tracker again."
)
EXAMPLE = "assay runs --root runs\n  assay runs --json\n  assay runs --goodput\n  assay runs --sync latest --to aim"
_HEADER = ("RUN", "EXPERIMENT", "STATUS", "STEP", "LOSS", "VALIDATION", "AGE")
_STATUS_WIDTH = 40
_PARTS = ("step", "compile", "startup", "data", "evaluate", "save", "restart", "repeated", "other")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, how, and what to send."""
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the runs are (default: ASSAY_RUNS, or ./runs)")
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object a run, statuses in full")
    parser.add_argument(
        "--goodput", action="store_true", help="where the wall time of each run went, in per cent of it"
    )
    parser.add_argument(
        "--sync", metavar="RUN", help='send this run (a part of its id, a path, or "latest") to a tracker'
    )
    parser.add_argument("--to", metavar="TRACKER", default="aim", help="the tracker for --sync (default: aim)")


def run(args: argparse.Namespace) -> int:
    """Print the table, or send the run."""
    root = args.root.absolute() if args.root else default_root()
    if args.sync:
        return _sync(args.sync, root, args.to)
    if args.goodput:
        return _goodput(root, as_json=args.json)
    found = summaries(root)
    if args.json:
        print("[" + ",\n ".join(encode(dataclasses.asdict(summary)) for summary in found) + "]")
    elif found:
        print(table([_HEADER, *map(_cells, found)]))
    else:
        print(f"no runs in {root}; `assay run X.gin` makes one")
    return 0


def age(seconds: float | None) -> str:
    """A duration in its largest unit.

    >>> age(50), age(150), age(7300), age(200_000)
    ('50s', '2m', '2h', '2d')
    """
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def _sync(which: str, root: Path, name: str) -> int:
    from assay import registry
    from assay.errors import PluginError
    from assay.track.replay import replay

    tracker = registry.load("tracker", name.removeprefix("tracker."))()
    if not tracker.available():
        raise PluginError(
            f"tracker.{name}: its backend is not installed; `assay show tracker.{name}` says what it needs"
        )
    directory = open_run(which, root)
    count = replay(directory, tracker)
    print(f"sent {count} entries of {directory.id} to tracker.{name}")
    return 0


def _goodput(root: Path, *, as_json: bool) -> int:
    found = {run.id: seconds for run in run_directories(root) if (seconds := goodput(run)) is not None}
    if as_json:
        print(encode(found))
    elif found:
        rows = [
            (name, duration(s["wall"]), *(f"{100 * s[part] / s['wall']:.1f}" for part in _PARTS))
            for name, s in found.items()
        ]
        print(table([("RUN", "WALL", *(f"{part.upper()} %" for part in _PARTS)), *rows]))
    else:
        print(f"no run in {root} has a record of its time; `assay run X.gin` makes one")
    return 0


def _cells(summary: Summary) -> tuple[str, ...]:
    steps = "/".join(str(n) for n in (summary.step, summary.steps) if n is not None)
    first_line = summary.status.partition("\n")[0]
    short = first_line if len(first_line) <= _STATUS_WIDTH else f"{first_line[: _STATUS_WIDTH - 1]}…"
    losses = [f"{value:.4f}" if value is not None else "" for value in (summary.loss, summary.validation_loss)]
    return (summary.id, summary.name, short, steps, *losses, age(summary.age))
