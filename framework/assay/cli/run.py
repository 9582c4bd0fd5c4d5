"""`assay run`: train an experiment."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from assay import config, devices
from assay.cli.arguments import add_experiment, add_overrides, add_processes, join
from assay.runs import default_root
from assay.train.interrupt import stop_on_signals

if TYPE_CHECKING:
    from assay.train.launch import Finished

HELP = (
    "Train an experiment in a new run directory. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and stop; `assay resume` goes on. "
    "Exit codes: 0 all steps done, 1 an error, 75 stopped by SIGTERM, SIGUSR1 or experiment.time_limit (start it again), "
    "130 stopped by Ctrl-C, 70 hung."
)
EXAMPLE = "assay run experiments/lm_code.gin --set experiment.seed=1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, overrides, and where runs are kept."""
    add_experiment(parser)
    add_overrides(parser)
    parser.add_argument("--root", type=Path, metavar="DIR", help="where runs are kept (default: ASSAY_RUNS, or ./runs)")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when all steps are done, else see EXIT_REQUEUE and EXIT_INTERRUPTED."""
    with stop_on_signals() as stop:
        devices.configure()
        loaded = config.load(args.file, args.overrides)
        devices.configure(deterministic=loaded.experiment.deterministic)
        join(args)
        from assay.train.launch import start

        return report(start(loaded, args.root.absolute() if args.root else default_root(), stop=stop))


def report(finished: "Finished") -> int:
    """Print where everything is, and how to go on."""
    from assay.parallel.processes import is_first

    run = finished.run
    if not is_first():
        return finished.code
    if finished.status != "completed":
        print(f"stopped at step {finished.step}, checkpoint saved. Go on with: assay resume {run.id}")
        return finished.code
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
