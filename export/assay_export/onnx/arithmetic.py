"""Rules for selecting, sorting and products of matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def select(equation: Any, operands: list[Any]) -> list[Any] | None:
    """A choice between two masks, for which onnxruntime has no Where: with logic."""
    which, *cases = operands
    if len(cases) != 2 or cases[0].dtype != bool:
        return None
    return [(which & cases[1]) | (~which & cases[0])]


def remainder(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Of integers, with the sign of the dividend: by a division, which rounds towards zero."""
    a, b = operands
    return None if jnp.issubdtype(a.dtype, jnp.floating) else [a - b * lax.div(a, b)]


def shift(equation: Any, operands: list[Any]) -> list[Any] | None:
    """By a known number of bits: a division, rounded down, or a product."""
    x, bits = operands
    if isinstance(bits, jax.core.Tracer) or np.size(bits) != 1 or not jnp.issubdtype(x.dtype, jnp.signedinteger):
        return None
    size = jnp.asarray(1 << int(np.ravel(bits)[0]), x.dtype)
    if equation.primitive.name == "shift_left":
        return [x * size]
    whole = lax.div(x, size)
    return [whole - ((x < 0) & (whole * size != x)).astype(x.dtype)]


def sort(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Along a symbolic axis, by rank: how many come before, of each; stable. Memory grows with the square of the size."""
    axis, keys = equation.params["dimension"], equation.params["num_keys"]
    size = operands[0].shape[axis]
    if isinstance(size, int) or keys > 1:
        return None
    moved = [jnp.moveaxis(x, axis, -1) for x in operands]
    key, other = moved[0][..., None, :], moved[0][..., :, None]
    rows = tuple(range(moved[0].ndim - 1))
    index = jnp.expand_dims(lax.iota(jnp.int32, size), (*rows, -2))  # as wide as `key`
    earlier = index < jnp.swapaxes(index, -1, -2)
    before = _less(key, other) | (~_less(other, key) & earlier)
    rank = before.astype(jnp.int32).sum(-1)
    at = (rank[..., None, :] == jnp.swapaxes(index, -1, -2)).astype(jnp.int32)  # [..., place, item]
    order = (at * index).sum(-1)
    return [jnp.moveaxis(jnp.take_along_axis(x, order, -1, mode="clip"), -1, axis) for x in moved]


def _less(a: Any, b: Any) -> Any:
    """a before b, with numbers before what is not one."""
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a < b
    return (a < b) | ((b != b) & (a == a))


def product(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Products of small integers, which onnxruntime has only for int32."""
    if operands[0].dtype not in (jnp.int8, jnp.uint8, jnp.int16):
        return None
    a, b = (x.astype(jnp.int32) for x in operands)
    numbers, out = equation.params["dimension_numbers"], equation.outvars[0].aval.dtype
    return [lax.dot_general(a, b, numbers, preferred_element_type=jnp.int32).astype(out)]


def grouped_product(equation: Any, operands: list[Any]) -> list[Any] | None:
    """lax.ragged_dot (rows by groups, each with a matrix): every matrix for every row, of which a mask keeps the row's own."""
    rows, matrices, sizes = operands
    numbers = equation.params["ragged_dot_dimension_numbers"]
    plain = (((1,), (1,)), ((), ()))
    if numbers.dot_dimension_numbers != plain or tuple(numbers.lhs_ragged_dimensions) != (0,) or rows.ndim != 2:
        return None
    ends = jnp.cumsum(sizes)
    row = lax.iota(sizes.dtype, rows.shape[0])
    mine = (row[None] < ends[:, None]) & (row[None] >= (ends - sizes)[:, None])
    each = jnp.einsum("mk,gkn->gmn", rows, matrices)
    return [jnp.where(mine[..., None], each, 0).sum(0).astype(rows.dtype)]
