"""A jaxpr with the primitives that the converter does not know, or gets wrong, said in others that it does."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend.core import Literal

from assay.errors import ExportError


class Unsupported(ExportError):
    """An operation that ONNX cannot say."""

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(message)
        self.operation = operation


DTYPES: ContextVar[Mapping[Any, Any]] = ContextVar("DTYPES", default=MappingProxyType({}))
"""Dtypes that become others while a jaxpr is evaluated: numbers in it, parameters, results."""


def rewritten(closed: Any) -> Callable[..., list[Any]]:
    """The function of a closed jaxpr, its calls inlined and its primitives replaced by their rules. Traceable."""
    return lambda *arguments: evaluate(closed.jaxpr, closed.consts, *arguments)


def evaluate(jaxpr: Any, consts: Sequence[Any], *arguments: Any) -> list[Any]:
    """What the jaxpr returns; equations of which nothing is used are left out."""
    values: dict[Any, Any] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*map(constant, consts), *arguments], strict=True)
    )

    def read(atom: Any) -> Any:
        return constant(atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in live(jaxpr):
        with source_info_util.user_context(equation.source_info.traceback):
            found = apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def live(jaxpr: Any) -> list[Any]:
    """The equations on which the results depend, in order."""
    used, kept = {id(v) for v in jaxpr.outvars}, []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(v) in used for v in equation.outvars):
            used.update(id(v) for v in equation.invars)
            kept.append(equation)
    return kept[::-1]


def apply(equation: Any, operands: list[Any]) -> list[Any]:
    """The results of one equation: by the primitive's rule where there is one and it does not decline."""
    from assay_export.onnx.rules import RULES

    rule = RULES.get(equation.primitive.name)
    found = None if rule is None else rule(equation, operands)
    return bind(equation, operands) if found is None else found


def bind(equation: Any, operands: list[Any]) -> list[Any]:
    """The results of the equation's own primitive."""
    if any(hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in equation.outvars):
        name = equation.primitive.name
        raise Unsupported(name, f"operation {name} ({where(equation)}): ONNX runtimes have no complex numbers")
    params = {name: retyped(value) for name, value in equation.params.items()}
    found = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(params))
    return list(found) if equation.primitive.multiple_results else [found]


def retyped(value: Any) -> Any:
    """A parameter: another dtype for one that is replaced, all else as it is."""
    return DTYPES.get().get(np.dtype(value), value) if _is_dtype(value) else value


def _is_dtype(value: Any) -> bool:
    return isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic))


def retyped_shape(aval: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an argument."""
    return jax.ShapeDtypeStruct(aval.shape, DTYPES.get().get(np.dtype(aval.dtype), aval.dtype))


def constant(value: Any) -> Any:
    """A number or an array, within what its new dtype holds."""
    new = DTYPES.get().get(getattr(value, "dtype", None)) if not isinstance(value, jax.core.Tracer) else None
    if new is None:
        return value
    most = float(np.finfo(new).max)
    return jnp.clip(jnp.asarray(value, jnp.float32), -most, most).astype(new)


def where(equation: Any) -> str:
    """The line of the user's that an equation comes from."""
    return source_info_util.summarize(equation.source_info)
