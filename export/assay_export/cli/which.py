"""Which artifact a command is about."""

import argparse
from pathlib import Path

from assay.errors import ExportError, RunError
from assay.runs import open_run
from assay_export import manifest


def add_artifact(parser: argparse.ArgumentParser) -> None:
    """An artifact, and where runs are kept, as `args.artifact` and `args.root`."""
    parser.add_argument(
        "artifact",
        metavar="ARTIFACT",
        help='a directory that `assay export` made, or a run ("latest"): its newest artifact',
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="where runs are kept (default: ASSAY_RUNS, or ./runs)")


def artifact_of(args: argparse.Namespace) -> Path:
    """The artifact. Raises ExportError for a run that has none in its `exports`, and for what is neither a directory nor a run."""
    directory = Path(args.artifact)
    if (directory / manifest.NAME).exists() or (directory.is_dir() and not (directory / "run.json").exists()):
        return directory
    try:
        run = open_run(args.artifact, args.root)
    except RunError as error:
        raise ExportError(f"{args.artifact} is neither an artifact's directory nor a run: {error}") from error
    found = list((run.path / "exports").glob(f"*/{manifest.NAME}"))
    if not found:
        raise ExportError(f"run {run.id} has no artifact in its exports; `assay export {run.id}` makes one")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent
