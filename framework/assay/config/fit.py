"""Whether a value fits a parameter's annotation, and the value as the parameter takes it.

Strict, with two kindnesses of Python itself: an int is taken for a float, and a list for a tuple or a sequence. Sequences become
tuples, so that frozen plugins are frozen all through. Leaves are judged by pydantic in strict mode.
"""

import collections.abc
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from assay.config.values import UNREADABLE, Reference, leaves, text
from assay.errors import PluginError, did_you_mean
from assay.kinds import KINDS

_KIND_OF = {kind.protocol: kind.name for kind in KINDS}
_SEQUENCES = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_LITERALS = (bool, int, float, complex, str, bytes, type(None), list, tuple, dict)


@dataclasses.dataclass(frozen=True)
class Fit:
    """The value as the parameter takes it, and what is wrong with it (nothing when it fits)."""

    value: Any
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """Stands for the object that a called reference gives, before there is one. `type` is a class or Any."""

    reference: Reference
    type: Any


def fit(value: Any, annotation: Any) -> Fit:
    """The value against the annotation. It may contain Made, UNREADABLE and plugin objects; an uncalled Reference fits nothing."""
    if isinstance(value, Reference):
        return Fit(value, (f"expects {describe(annotation)}, got {value} without parentheses: write {value}()",))
    annotation = _named_type(annotation)
    if value is UNREADABLE or annotation in (Any, object) or isinstance(annotation, TypeVar):
        return Fit(value)
    if get_origin(annotation) is Annotated:
        return _fit_constrained(value, annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return _fit_union(value, annotation)
    if isinstance(value, Made):
        return _fit_made(value, annotation)
    if not isinstance(value, _LITERALS):
        return Fit(value)  # an object that was built: its reference has been judged
    return _fit_literal(value, annotation)


def describe(annotation: Any) -> str:
    """The annotation in words: "int", "'a' or 'b'", "a model", "a list of (a metric)"."""
    plain = _without_annotated(annotation)
    origin, arguments = get_origin(plain), get_args(plain)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is Literal:
        return " or ".join(repr(a) for a in arguments)
    if plain in _KIND_OF:
        return f"a {_KIND_OF[plain]}" if _KIND_OF[plain][0] not in "aeiou" else f"an {_KIND_OF[plain]}"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"({', '.join(describe(a) for a in arguments)})"
    if origin in _SEQUENCES and arguments:
        return f"a list of ({describe(arguments[0])})"
    if origin in _MAPPINGS:
        return f"a dict of ({describe(arguments[0])}: {describe(arguments[1])})"
    if plain in (None, type(None)):
        return "None"
    return str(getattr(plain, "__name__", plain))


def asks_for(annotation: Any) -> str:
    """What to write for it: "@model.NAME()", "[@metric.NAME()]", or "…" with the type in words."""
    kind = accepts_kind(annotation)
    if kind is None or float in get_args(annotation):
        return f"… ({describe(annotation)})"
    direct = annotation in _KIND_OF or any(
        member in _KIND_OF for member in get_args(annotation) if get_origin(annotation) not in _SEQUENCES
    )
    return f"@{kind}.NAME()" if direct else f"[@{kind}.NAME()]"


def accepts_kind(annotation: Any) -> str | None:
    """The kind of plugin that the annotation asks for, directly or within a union or container, if any."""
    if annotation in _KIND_OF:
        return _KIND_OF[annotation]
    return next((kind for a in get_args(annotation) if (kind := accepts_kind(a))), None)


def _fit_union(value: Any, annotation: Any) -> Fit:
    """The member that takes the value unchanged, else the first that takes it."""
    tried = [fit(value, member) for member in get_args(annotation)]
    fitting = [f for f in tried if not f.problems]
    if fitting:
        return next((f for f in fitting if type(f.value) is type(value) and f.value == value), fitting[0])
    containers = [f for f, member in zip(tried, get_args(annotation), strict=True) if _is_container_for(value, member)]
    if len(containers) == 1:
        return Fit(value, containers[0].problems)
    return Fit(value, (_expected(value, annotation),))


def _is_container_for(value: Any, annotation: Any) -> bool:
    origin = get_origin(_without_annotated(annotation))
    return (isinstance(value, list | tuple) and origin in _SEQUENCES) or (
        isinstance(value, dict) and origin in _MAPPINGS
    )


def _fit_made(value: Made, annotation: Any) -> Fit:
    """A called reference: by kind where the annotation is a kind's Protocol, by class otherwise."""
    kind = value.reference.selector.partition(".")[0]
    if annotation in _KIND_OF:
        ok = _KIND_OF[annotation] == kind
    elif not inspect.isclass(annotation) or annotation.__module__ == "builtins" or _is_container(annotation):
        ok = False
    else:
        ok = not inspect.isclass(value.type) or _is_subclass(value.type, annotation)
    return Fit(value) if ok else Fit(value, (_expected(value, annotation),))


def _is_container(annotation: Any) -> bool:
    return annotation in _SEQUENCES or annotation in _MAPPINGS


def _is_subclass(cls: type, annotation: type) -> bool:
    """Whether instances may pass for the annotation; Protocols that cannot be tested pass."""
    try:
        return issubclass(cls, annotation)
    except TypeError:
        return getattr(annotation, "_is_protocol", False)


def _fit_constrained(value: Any, annotation: Any) -> Fit:
    """Annotated[type, constraints]: the type first, then, for literals, what pydantic makes of the constraints."""
    fitted = fit(value, get_args(annotation)[0])
    if fitted.problems or not all(isinstance(leaf, _LITERALS) for leaf in leaves(fitted.value)):
        return fitted
    return _fit_leaf(fitted.value, annotation)


def _fit_literal(value: Any, annotation: Any) -> Fit:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _fit_choice(value, arguments, annotation)
    if origin is tuple or annotation is tuple:
        return _fit_tuple(value, annotation, arguments)
    if origin in _SEQUENCES or annotation in _SEQUENCES:
        return _fit_sequence(value, annotation, origin or annotation, arguments)
    if origin in _MAPPINGS or annotation in _MAPPINGS:
        return _fit_mapping(value, annotation, arguments)
    if isinstance(value, list | tuple | dict) or _is_opaque(annotation):
        return Fit(value, (_expected(value, annotation),))
    return _fit_leaf(value, annotation)


def _is_opaque(plain: Any) -> bool:
    """Whether no literal can be of this type: a Protocol, or a class that is not one of Python's own values."""
    return getattr(plain, "_is_protocol", False) or (inspect.isclass(plain) and dataclasses.is_dataclass(plain))


def _fit_choice(value: Any, choices: Sequence[Any], annotation: Any) -> Fit:
    if any(type(value) is type(c) and value == c for c in choices):
        return Fit(value)
    near = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    return Fit(value, (_expected(value, annotation) + ("." + near if near else ""),))


def _fit_tuple(value: Any, annotation: Any, arguments: Sequence[Any]) -> Fit:
    if not isinstance(value, list | tuple):
        return Fit(value, (_expected(value, annotation),))
    if not arguments or arguments[-1] is Ellipsis:
        return _items(value, [arguments[0] if arguments else Any] * len(value), tuple)
    if len(arguments) != len(value):
        return Fit(value, (f"{_expected(value, annotation)}: {len(arguments)} values are needed",))
    return _items(value, arguments, tuple)


def _fit_sequence(value: Any, annotation: Any, origin: Any, arguments: Sequence[Any]) -> Fit:
    if not isinstance(value, list | tuple):
        wrapped = isinstance(value, str | int | float) and arguments and not fit(value, arguments[0]).problems
        return Fit(value, (_expected(value, annotation) + (f": write [{text(value)}]" if wrapped else ""),))
    make = origin if origin in (list, set, frozenset) else tuple
    return _items(value, [arguments[0] if arguments else Any] * len(value), make)


def _items(values: Sequence[Any], annotations: Sequence[Any], make: Callable[[list[Any]], Any]) -> Fit:
    fits = [fit(v, a) for v, a in zip(values, annotations, strict=True)]
    problems = tuple(f"item {i + 1}: {p}" for i, f in enumerate(fits) for p in f.problems)
    return Fit(values, problems) if problems else Fit(make([f.value for f in fits]))


def _fit_mapping(value: Any, annotation: Any, arguments: Sequence[Any]) -> Fit:
    if not isinstance(value, dict):
        return Fit(value, (_expected(value, annotation),))
    of_key, of_value = arguments or (Any, Any)
    fits = [(k, fit(k, of_key), fit(v, of_value)) for k, v in value.items()]
    problems = tuple(
        f"{what} {text(k)}: {p}" for k, a, b in fits for what, f in (("key", a), ("item", b)) for p in f.problems
    )
    return Fit(value, problems) if problems else Fit({a.value: b.value for _, a, b in fits})


def _fit_leaf(value: Any, annotation: Any) -> Fit:
    from pydantic import ValidationError  # half a second that `assay diff` does without

    try:
        return Fit(_adapter(annotation).validate_python(value))
    except ValidationError as error:
        if get_origin(annotation) is Annotated:
            reason = error.errors()[0]["msg"].replace("Input should", "must", 1)
            return Fit(value, (f"{reason}, got {text(value)}",))
        return Fit(value, (_expected(value, annotation),))


@functools.lru_cache(maxsize=256)
def _adapter(annotation: Any) -> Any:
    """A strict pydantic judge. Raises PluginError for a type that pydantic cannot judge."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError as error:
        raise PluginError(f"values of type {annotation} cannot be checked: {error.message}") from error


def _expected(value: Any, annotation: Any) -> str:
    if isinstance(value, Made):
        kind = accepts_kind(annotation)
        wrapped = kind is not None and value.reference.selector.startswith(f"{kind}.")
        advice = f": write [{value.reference}]" if wrapped else f": write @{kind}.NAME()" if kind else ""
        return f"expects {describe(annotation)}, got {value.reference}{advice}"
    return f"expects {describe(annotation)}, got {text(value)} ({type(value).__name__})"


def _without_annotated(annotation: Any) -> Any:
    """The type inside Annotated[...] or behind a name."""
    annotation = _named_type(annotation)
    return _without_annotated(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _named_type(annotation: Any) -> Any:
    """The type behind a NewType or a `type` statement."""
    while hasattr(annotation, "__supertype__") or type(annotation).__name__ == "TypeAliasType":
        annotation = getattr(annotation, "__supertype__", None) or annotation.__value__
    return annotation
