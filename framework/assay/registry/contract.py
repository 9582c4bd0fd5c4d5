"""What a plugin's constructor must look like, and its parameters as data: names, types and defaults.

Every parameter is named and annotated with a type that can be resolved at run time, so that an experiment file can be
checked against it. `*args` and `**kwargs` would accept any misspelling and are refused.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, cast, get_type_hints

from assay.errors import PluginError


class _Required:
    """The default of a parameter that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = _Required()


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One constructor parameter: its resolved annotation, and its default or REQUIRED."""

    name: str
    annotation: Any
    default: Any


def parameters(plugin: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The constructor's parameters by name, in order.

    Raises PluginError when it is not callable, takes *args, **kwargs or positional-only parameters, or has an annotation that
    is missing or cannot be resolved.
    """
    if not (inspect.isclass(plugin) or inspect.isroutine(plugin)):
        raise PluginError(f"it is {plugin!r}; a plugin is a class or a function")
    return _parameters(cast(Hashable, plugin))


def produces(plugin: Callable[..., Any]) -> Any:
    """The type of what calling the plugin gives: the class itself, or a function's return annotation (Any without one)."""
    return plugin if inspect.isclass(plugin) else _hints(plugin).get("return", Any)


@functools.lru_cache(maxsize=512)
def _parameters(plugin: Any) -> Mapping[str, Parameter]:
    signature = _signature(plugin)
    hints = _hints(plugin)
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PluginError(
                f"its constructor takes {parameter}; a plugin names every parameter (no *args, **kwargs or /)"
            )
        if parameter.name not in hints:
            raise PluginError(f"its parameter '{parameter.name}' has no annotation; annotate it with its type")
    return {p.name: Parameter(p.name, hints[p.name], _default(plugin, p)) for p in signature.parameters.values()}


def _signature(plugin: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(plugin)
    except (TypeError, ValueError) as error:
        raise PluginError(f"its signature cannot be read: {error}; write a plain class or function") from error


def _hints(plugin: Callable[..., Any]) -> dict[str, Any]:
    """Annotations, resolved where they were written: a dataclass's fields may come from bases in other modules."""
    fields = dataclasses.is_dataclass(plugin) and "__init__" in vars(plugin)
    owner = plugin if fields or not inspect.isclass(plugin) else plugin.__init__
    try:
        hints = get_type_hints(owner, include_extras=True)
    except Exception as error:
        raise PluginError(
            f"an annotation of its constructor cannot be resolved: {error}; import the type at run time, not under TYPE_CHECKING"
        ) from error
    return {name: hint.type if isinstance(hint, dataclasses.InitVar) else hint for name, hint in hints.items()}


def _default(plugin: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The default value; a dataclass's `default_factory` is called, since its signature does not show what that makes."""
    if dataclasses.is_dataclass(plugin):
        field = next((f for f in dataclasses.fields(plugin) if f.name == parameter.name), None)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return REQUIRED if parameter.default is parameter.empty else parameter.default
