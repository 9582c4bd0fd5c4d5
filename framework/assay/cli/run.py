"""`assay run`: train an experiment."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from assay import config, devices
from assay.cli.arguments import add_experiment, add_overrides
from assay.runs import default_root

if TYPE_CHECKING:
    from assay.train.launch import Finished

HELP = "Train an experiment in a new run directory. Ctrl-C saves a checkpoint and stops; `assay resume` goes on."
EXAMPLE = "assay run experiments/lm_code.gin --set experiment.seed=1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, overrides, and where runs are kept."""
    add_experiment(parser)
    add_overrides(parser)
    parser.add_argument("--root", type=Path, metavar="DIR", help="where runs are kept (default: ASSAY_RUNS, or ./runs)")


def run(args: argparse.Namespace) -> int:
    """Train; 0 when all steps are done, 130 when stopped before."""
    devices.configure()
    loaded = config.load(args.file, args.overrides)
    from assay.train.launch import start

    return report(start(loaded, args.root.absolute() if args.root else default_root()))


def report(finished: "Finished") -> int:
    """Print where everything is, and how to go on."""
    run = finished.run
    if finished.status != "completed":
        print(f"stopped at step {finished.step}, checkpoint saved. Go on with: assay resume {run.id}")
        return 130
    for name, value in finished.values.items():
        print(f"{name:<32} {value:.4f}")
    for label, path in [
        ("run", run.path),
        ("metrics", run.metrics),
        ("checkpoints", run.checkpoints),
        ("samples", run.samples),
    ]:
        if path.exists():
            print(f"{label:<11} {path}")
    print(f"next        assay evaluate {run.id} · assay runs · assay ui")
    return 0
