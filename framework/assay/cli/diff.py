"""`assay diff`: two configurations, value by value."""

import argparse
from pathlib import Path

HELP = "Compare two experiment files or two runs, value by value with types. Exit 0: the same; 1: different."
EXAMPLE = "assay diff experiments/lm_code.gin runs/lm_code-1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two sides."""
    parser.add_argument("a", metavar="A", type=Path, help="an experiment file or a run directory")
    parser.add_argument("b", metavar="B", type=Path, help="another")


def run(args: argparse.Namespace) -> int:
    """Print the differences, one a line."""
    from assay.config.diff import diff

    changes = diff(args.a, args.b)
    for change in changes:
        print(change)
    return 1 if changes else 0
