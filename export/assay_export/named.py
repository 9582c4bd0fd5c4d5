"""Exporters and transforms as a command line names them: `int8`, or with settings `int4(group=64, skip=['head'])`."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

from assay import registry
from assay.config.fit import fit
from assay.errors import ExportError, did_you_mean
from assay.kinds import Exporter, Transform
from assay.registry import REQUIRED, Parameter

EXAMPLES = {"transform": "int8 or 'int4(group=64)'", "exporter": "onnx or 'stablehlo(buckets=[]),onnx(opset=21)'"}


def transform_of(text: str) -> Transform:
    """The transform plugin that `text` names and configures.

    Raises ExportError for text of another form and for settings that there are not or that do not fit, PluginError for an unknown name.
    """
    name, settings = _named(_parsed("transform", text), "transform", text)
    plugin: Transform = _made("transform", name, settings, f"--transform {text}")
    return plugin


def exporters_of(text: str) -> dict[str, Exporter]:
    """Format -> exporter plugin, of names and settings with commas between: `stablehlo,onnx(dtype="float16")`. Raises as `transform_of`."""
    node = _parsed("exporter", text)
    found: dict[str, Exporter] = {}
    for part in node.elts if isinstance(node, ast.Tuple) else [node]:
        name, settings = _named(part, "exporter", text)
        if name in found:
            raise ExportError(f"--to {text}: {name} is named twice; each format is written once")
        found[name] = _made("exporter", name, settings, f"--to {ast.get_source_segment(text.strip(), part)}")
    return found


def exporter_of(content: Mapping[str, Any], name: str) -> Exporter:
    """The exporter plugin of a format of an artifact, with the settings that it was written with and that the plugin still has.

    content: the manifest's. Raises as `transform_of`.
    """
    known = registry.parameters(registry.load("exporter", name))
    settings = content["formats"][name].get("settings", {})
    plugin: Exporter = _made("exporter", name, {k: v for k, v in settings.items() if k in known}, f"format {name}")
    return plugin


def _parsed(kind: str, text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ExportError(f"{_option(kind)} {text}: {reason}; {_form(kind)}") from error


def _named(node: ast.expr, kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """(name, settings): literals only; nothing is evaluated."""
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args or None in _keys(node):
        raise ExportError(f"{_option(kind)} {text}: it is no {kind}; {_form(kind)}")
    settings: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg in settings:
            raise ExportError(f"{_option(kind)} {text}: {keyword.arg} is given twice")
        settings[str(keyword.arg)] = _literal(keyword, kind, text)
    return node.func.id, settings


def _keys(call: ast.Call) -> list[str | None]:
    return [keyword.arg for keyword in call.keywords]


def _literal(keyword: ast.keyword, kind: str, text: str) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except (ValueError, TypeError, SyntaxError) as error:
        written = ast.get_source_segment(text.strip(), keyword.value)
        raise ExportError(
            f"{_option(kind)} {text}: {keyword.arg}={written} is no value; write a number, True, None, a list such as [1, 2], "
            "or text in quotes"
        ) from error


def _made(kind: str, name: str, settings: Mapping[str, Any], at: str) -> Any:
    """The plugin with its settings. at: begins the message, which tells all that is wrong and the settings there are."""
    plugin: Callable[..., Any] = registry.load(kind, name)
    known = registry.parameters(plugin)
    fitted = {key: fit(value, known[key].annotation) for key, value in settings.items() if key in known}
    problems = [
        *(f"{kind}.{name} has no setting '{key}'.{did_you_mean(key, known)}" for key in settings if key not in known),
        *(f"{key} {'; '.join(found.problems)}" for key, found in fitted.items() if found.problems),
        *(f"{kind}.{name} needs {p.name}" for p in known.values() if p.default is REQUIRED and p.name not in settings),
    ]
    if problems:
        raise ExportError(f"{at}: {'; '.join(problems)}; {_settings(kind, name, known)}")
    try:
        return plugin(**{key: found.value for key, found in fitted.items()})
    except ValueError as error:
        raise ExportError(f"{at}: {error}; {_settings(kind, name, known)}") from error


def _settings(kind: str, name: str, known: Mapping[str, Parameter]) -> str:
    shown = (p.name if p.default is REQUIRED else f"{p.name}={p.default!r}" for p in known.values())
    return f"{kind}.{name} has {', '.join(shown)}" if known else f"{kind}.{name} has no settings"


def _option(kind: str) -> str:
    return {"transform": "--transform", "exporter": "--to"}[kind]


def _form(kind: str) -> str:
    return f"write NAME or NAME(setting=value, …), such as {EXAMPLES[kind]}"
