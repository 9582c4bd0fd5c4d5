"""Transforms as a command line names them: `int8`, or with settings `int4(group=64, skip=['head'])`."""

import ast
from collections.abc import Callable
from typing import Any

from assay import registry
from assay.config.fit import fit
from assay.errors import ExportError, did_you_mean
from assay.kinds import Transform
from assay.registry import REQUIRED, Parameter

FORM = "write NAME or NAME(setting=value, …), such as int8 or 'int4(group=64)'"


def transform_of(text: str) -> Transform:
    """The transform plugin that `text` names and configures.

    Raises ExportError for text of another form and for settings that there are not or that do not fit, PluginError for an unknown name.
    """
    name, values = _parsed(text)
    plugin: Callable[..., Transform] = registry.load("transform", name)
    known = registry.parameters(plugin)
    for unknown in values.keys() - known.keys():
        raise ExportError(
            f"--transform {text}: transform.{name} has no setting '{unknown}'.{did_you_mean(unknown, known)}"
        )
    missing = [p.name for p in known.values() if p.default is REQUIRED and p.name not in values]
    if missing:
        raise ExportError(f"--transform {text}: transform.{name} needs {', '.join(missing)}; {FORM}")
    try:
        return plugin(**{key: _fitted(text, known[key], value) for key, value in values.items()})
    except ValueError as error:
        raise ExportError(f"--transform {text}: {error}") from error


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """(name, settings): literals only; nothing is evaluated."""
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return node.func.id, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
    except (SyntaxError, ValueError) as error:
        raise ExportError(f"--transform {text}: {error}; {FORM}") from error
    raise ExportError(f"--transform {text}: it is no transform; {FORM}")


def _fitted(text: str, parameter: Parameter, value: Any) -> Any:
    found = fit(value, parameter.annotation)
    if found.problems:
        raise ExportError(f"--transform {text}: {parameter.name} {'; '.join(found.problems)}")
    return found.value
