"""`assay check`: experiment files, before anything is built."""

import argparse

from assay.cli.arguments import add_overrides

HELP = (
    "Check experiment files: names, parameters, types, references, macros, scopes. Prints every mistake with its place."
)
EXAMPLE = "assay check experiments/*.gin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and overrides that hold for each of them."""
    parser.add_argument("files", nargs="+", metavar="X.gin", help="experiment files")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Print each file's mistakes, or that it is in order; 1 when there is any mistake."""
    from assay import config

    wrong = 0
    for file in args.files:
        problems = config.check(file, args.overrides)
        wrong += bool(problems)
        print("\n".join(map(str, problems)) if problems else f"{file}: ok")
    return 1 if wrong else 0
