"""`assay resume`: go on with a run."""

import argparse
from pathlib import Path

from assay import devices
from assay.cli.run import report
from assay.runs import open_run

HELP = "Go on with a run from its newest complete checkpoint, on the devices that there are now."
EXAMPLE = "assay resume latest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_run(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """A run, and where runs are kept, as `args.run` and `args.root`."""
    parser.add_argument("run", metavar="RUN", help='a run: its id or a part of it, its path, or "latest"')
    parser.add_argument("--root", type=Path, metavar="DIR", help="where runs are kept (default: ASSAY_RUNS, or ./runs)")


def run(args: argparse.Namespace) -> int:
    """Train on; 0 when all steps are done, 130 when stopped before."""
    found = open_run(args.run, args.root)
    devices.configure()
    from assay.train.launch import resume

    return report(resume(found))
