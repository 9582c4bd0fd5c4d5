"""Rules for scattering by row of a batch, as vmapped segment sums do."""

from typing import Any

import jax.numpy as jnp
from jax import lax


def scatter(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Rows of a batch, each with its own indices: one scatter into all rows end to end, and a last place for what is to be dropped."""
    x, indices, updates = operands
    if not _by_row(equation.params["dimension_numbers"], x, indices, updates):
        return None
    rows, size, rest = x.shape[0], x.shape[1], x.shape[2:]
    flat = lax.concatenate([x.reshape(rows * size, *rest), jnp.zeros((1, *rest), x.dtype)], 0)
    index = indices[..., 0]
    first = lax.broadcasted_iota(index.dtype, index.shape, 0) * size
    index = jnp.where((index >= 0) & (index < size), first + index, rows * size).reshape(-1)
    place = getattr(flat.at[index], METHODS[equation.primitive.name])
    found = place(updates.reshape(-1, *rest), mode="promise_in_bounds")
    return [found[: rows * size].reshape(x.shape)]


METHODS = {
    "scatter-add": "add",
    "scatter_add": "add",
    "scatter-max": "max",
    "scatter_max": "max",
    "scatter-min": "min",
    "scatter_min": "min",
}


def _by_row(numbers: Any, x: Any, indices: Any, updates: Any) -> bool:
    """Whether axis 0 is a batch of all three and the indices say places along axis 1."""
    batched = tuple(numbers.operand_batching_dims) == (0,) == tuple(numbers.scatter_indices_batching_dims)
    along = tuple(numbers.inserted_window_dims) == (1,) == tuple(numbers.scatter_dims_to_operand_dims)
    windows = tuple(numbers.update_window_dims) == tuple(range(2, updates.ndim))
    return batched and along and windows and indices.ndim == 3 and updates.ndim == x.ndim
