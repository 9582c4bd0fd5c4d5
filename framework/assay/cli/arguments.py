"""Arguments that several verbs share."""

import argparse


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The experiment file, as `args.file`."""
    parser.add_argument("file", metavar="X.gin", help="an experiment file")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE`, any number of times, as the list `args.overrides` for config.load and config.check."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value, such as --set model.transformer.layers=6 or --set MACRO=3; may be repeated; text needs no quotes",
    )
