"""`assay config`: every value of an experiment and where it comes from."""

import argparse

from assay.cli.arguments import add_experiment, add_overrides
from assay.table import table

HELP = (
    "Show every value of an experiment, defaults of the plugins in use included, with file:line, '--set' or 'default'."
)
EXAMPLE = "assay config experiments/lm_code.gin --set model.transformer.layers=6"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file and overrides."""
    add_experiment(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line a value: gin text, then a comment with its place. The output is a gin file."""
    from assay import config

    loaded = config.load(args.file, args.overrides)
    print(table([(line, f"# {loaded.where(key)}") for key, line in loaded.lines().items()]))
    for unused in loaded.unused():
        print(f"# bound but not used: {unused}")
    return 0
