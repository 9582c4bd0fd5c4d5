"""`assay plan`: what a run would be, without using device memory."""

import argparse

from assay import config, devices
from assay.cli.arguments import add_experiment, add_overrides

HELP = "show shapes, shardings, memory and cost of an experiment without running it"
EXAMPLE = "assay plan experiments/lm_code.gin --set experiment.batch_size=64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, overrides, and whether to leave the compilation out."""
    add_experiment(parser)
    add_overrides(parser)
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave out the compiler's memory analysis, which takes as long as compiling",
    )


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    devices.configure()
    loaded = config.load(args.file, args.overrides)
    from assay.plan.plan import make_plan
    from assay.plan.report import memory, parameters, summary

    plan = make_plan(loaded.experiment, loaded.where)
    print("\n".join([*parameters(plan), "", *summary(plan)]), flush=True)
    if not args.no_compile:
        print("\n" + "\n".join(memory(plan)))
    return 0
