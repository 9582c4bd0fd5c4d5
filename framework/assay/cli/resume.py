"""`assay resume`: go on with a run."""

import argparse
from pathlib import Path

from assay import devices
from assay.cli.arguments import add_processes, join
from assay.cli.run import report
from assay.runs import open_run
from assay.train.interrupt import stop_on_signals

HELP = (
    "Go on with a run from its newest whole checkpoint, on the devices that there are now. A damaged checkpoint is reported, set "
    "aside, and the one before it is used. Exit codes as of `assay run`."
)
EXAMPLE = "assay resume latest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_run(parser)
    add_processes(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """A run, and where runs are kept, as `args.run` and `args.root`."""
    parser.add_argument("run", metavar="RUN", help='a run: its id or a part of it, its path, or "latest"')
    parser.add_argument("--root", type=Path, metavar="DIR", help="where runs are kept (default: ASSAY_RUNS, or ./runs)")


def run(args: argparse.Namespace) -> int:
    """Train on; 0 when all steps are done, else see EXIT_REQUEUE and EXIT_INTERRUPTED."""
    with stop_on_signals() as stop:
        found = open_run(args.run, args.root)
        devices.configure()
        from assay.train.launch import recorded, resume

        devices.configure(deterministic=recorded(found).experiment.deterministic)
        join(args)
        return report(resume(found, stop=stop))
