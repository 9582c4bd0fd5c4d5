"""`assay import`: parameters that another library trained, for fine-tuning."""

import argparse
from collections.abc import Callable
from pathlib import Path

from assay import imported, registry
from assay.errors import DataError, PluginError
from assay.kinds import Importer
from assay.registry import REQUIRED

HELP = """Read a model in another library's layout and write it as Assay keeps models: model.gin, parameters.safetensors and origin.json.
An experiment fine-tunes it through model.pretrained, with the lines of model.gin as its model."""
EXAMPLE = "assay import hf ./gpt2 --to pretrained/gpt2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The layout, what to read and where to write."""
    parser.add_argument(
        "layout", metavar="LAYOUT", help="an importer plugin, such as hf; `assay list importer` lists them"
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="the directory or file to read")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the directory to make")


def run(args: argparse.Namespace) -> int:
    """Read, check, write, and print the model's lines."""
    importer = _importer(args.layout)
    if args.to.exists():
        raise DataError(f"{args.to} exists already; choose another directory, or remove it")
    if not args.path.exists():
        raise DataError(f"{args.path} does not exist; name the model's directory")
    found = importer.read(args.path)
    imported.write(found, args.to, origin={"layout": args.layout, "path": str(args.path.absolute())})
    count = sum(value.size for value in found.parameters.values())
    print(found.model.rstrip())
    for note in found.notes:
        print(f"note: {note}")
    print(f"{args.to}: {len(found.parameters)} arrays, {count:,} parameters")
    return 0


def _importer(name: str) -> Importer:
    """The importer plugin of that name. Raises PluginError when it cannot be made without parameters."""
    plugin: Callable[..., Importer] = registry.load("importer", name)
    required = [p.name for p in registry.parameters(plugin).values() if p.default is REQUIRED]
    if required:
        raise PluginError(f"importer.{name} needs {', '.join(required)}; `assay import` gives importers no parameters")
    return plugin()
