"""Signatures as jax's shapes: symbolic, with the bounds of their dims as constraints, or of given sizes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from assay.exported import Dim, Signature, Tensor


def symbols(signature: Signature, dims: Mapping[str, Dim]) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs with symbolic shapes, all in one scope."""
    names = signature.dims
    bounds = [f"{n} >= {dims[n].low}" for n in names] + [f"{n} <= {dims[n].high}" for n in names]
    relations = [f"{large} - {small} >= 0" for small, large in signature.at_most if {small, large} <= {*names}]
    sizes = dict(zip(names, _symbolic(names, [*bounds, *relations]), strict=True))
    return {name: _shape(tensor, sizes) for name, tensor in signature.inputs.items()}


def at_sizes(signature: Signature, sizes: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs where the dims have these sizes."""
    return {name: _shape(tensor, sizes) for name, tensor in signature.inputs.items()}


def shapes_of(signature: Signature, dims: Mapping[str, Dim], batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs of `batch` rows, all other dims at their bounds."""
    return at_sizes(signature, {n: batch if n == "batch" else dims[n].high for n in signature.dims})


def _symbolic(names: tuple[str, ...], constraints: list[str]) -> tuple[Any, ...]:
    return tuple(export.symbolic_shape(", ".join(names), constraints=constraints)) if names else ()


def _shape(tensor: Tensor, sizes: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    shape = tuple(sizes[n] if isinstance(n, str) else n for n in tensor.shape)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(tensor.dtype))
