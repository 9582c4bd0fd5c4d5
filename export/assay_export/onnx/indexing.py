"""Rules for reading and writing by index: what jax does with indices out of range, and rows of a batch with indices of their own."""

from typing import Any

import jax.numpy as jnp
import numpy as np
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


def gather(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Indices moved into range first, for onnxruntime refuses others; what they select is replaced where jax fills."""
    p = dict(equation.params)
    mode = lax.GatherScatterMode.from_any(p["mode"])
    if mode not in (lax.GatherScatterMode.CLIP, lax.GatherScatterMode.FILL_OR_DROP):
        return None
    x, indices = operands
    axes = p["dimension_numbers"].start_index_map
    last = [jnp.asarray(x.shape[axis] - p["slice_sizes"][axis], indices.dtype) for axis in axes]
    limit = jnp.expand_dims(jnp.stack(last), tuple(range(indices.ndim - 1)))
    p["mode"] = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    found = equation.primitive.bind(x, jnp.minimum(jnp.maximum(indices, 0), limit), **p)
    if mode is lax.GatherScatterMode.CLIP:
        return [found]
    valid = ((indices >= 0) & (indices <= limit)).all(-1)
    batch = [d for d in range(found.ndim) if d not in p["dimension_numbers"].offset_dims]
    mask = lax.broadcast_in_dim(valid, found.shape, batch)
    return [jnp.where(mask, found, _filling(p["fill_value"], found.dtype))]


def _filling(value: Any, dtype: Any) -> Any:
    """What jax puts in place of a row that is not there (jax.lax.GatherScatterMode)."""
    if value is not None:
        return jnp.asarray(value, dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.nan, dtype)
    if dtype == jnp.bool_:
        return jnp.asarray(True)
    return jnp.asarray(np.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.signedinteger) else np.iinfo(dtype).max, dtype)
