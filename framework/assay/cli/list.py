"""`assay list`: the plugins there are."""

import argparse

from assay import registry
from assay.table import table

HELP = "List the plugins of all kinds or of one: kind, name, package, version. Imports none of them."
EXAMPLE = "assay list model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help="only this kind, such as model or dataset")


def run(args: argparse.Namespace) -> int:
    """Print the table. Plugins that cannot be used have the reason in its last column."""
    found = registry.entries(args.kind)
    rows = [(e.kind, e.name, e.distribution, e.version, f"broken: {e.problem}" if e.problem else "") for e in found]
    print(table([("KIND", "NAME", "PACKAGE", "VERSION", ""), *rows]))
    return 0
