"""`assay show`: one plugin."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay import registry
from assay.errors import PluginError
from assay.registry import REQUIRED, Parameter
from assay.table import table

HELP = "Show a plugin, or the experiment itself: parameters, types, defaults, documentation, and where it comes from."
EXAMPLE = "assay show model.transformer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The plugin's name."""
    parser.add_argument("plugin", metavar="KIND.NAME", help="a plugin as experiments name it, or 'experiment'")


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    plugin, origin = _find(args.plugin)
    print(f"{args.plugin}  ({origin})")
    print(f"{_source(plugin)}\n")
    print(table([_row(args.plugin, p) for p in registry.parameters(plugin).values()] or [("no parameters",)]))
    print(f"\n{inspect.getdoc(plugin) or 'No documentation.'}")
    return 0


def _find(selector: str) -> tuple[Callable[..., Any], str]:
    from assay import __version__
    from assay.experiment import Experiment

    if selector == "experiment":
        return Experiment, f"assay {__version__}"
    kind, _, name = selector.partition(".")
    if not name:
        raise PluginError(f"'{selector}' is not the name of a plugin: write KIND.NAME; `assay list {kind}` lists them")
    return registry.load(kind, name), registry.find(kind, name).origin


def _source(plugin: Callable[..., Any]) -> str:
    """file:line of the definition, relative to the working directory where it lies below it."""
    try:
        path, line = Path(inspect.getfile(plugin)), inspect.getsourcelines(plugin)[1]
    except (OSError, TypeError):
        return f"{plugin.__module__} (no source file)"
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


def _row(selector: str, parameter: Parameter) -> tuple[str, str, str]:
    default = "required" if parameter.default is REQUIRED else f"= {parameter.default!r}"
    return f"{selector}.{parameter.name}", _written(parameter.annotation), default


def _written(annotation: Any) -> str:
    """The annotation as its author would write it, without module names."""
    text = inspect.formatannotation(annotation)
    return (
        text.replace("collections.abc.", "")
        .replace("assay.kinds.", "")
        .replace("typing.", "")
        .replace("NoneType", "None")
    )
