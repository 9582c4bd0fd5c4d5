"""`assay evaluate`: the metrics of a checkpoint over whole splits."""

import argparse
import json

from assay import devices
from assay.cli.resume import add_run
from assay.runs import open_run

HELP = "Evaluate a checkpoint of a run over whole splits of its dataset."
EXAMPLE = "assay evaluate latest --step 400"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the step, and the output's form."""
    add_run(parser)
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (default: the newest)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print every value."""
    found = open_run(args.run, args.root)
    devices.configure()
    from assay.evaluate.evaluator import Evaluator
    from assay.train.launch import evaluated

    plan, state, step = evaluated(found, args.step)
    evaluator = Evaluator(plan)
    values = {k: v for split in plan.experiment.evaluate_splits for k, v in evaluator(split, state).items()}
    if args.json:
        print(json.dumps({"run": found.id, "step": step, **values}))
    else:
        print(f"{found.id}  step {step}")
        for name, value in values.items():
            print(f"{name:<32} {value:.6f}")
    return 0
