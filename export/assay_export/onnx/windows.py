"""Rules for padding, convolutions and pooling, whose amounts may follow from symbolic sizes."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

MOST = 128
"""Positions of a window up to which pooling is said as so many slices."""


def pad(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Blocks of the value beside the array; negative amounts are slices; zeros within are put in by a reshape."""
    x, value = operands
    config = equation.params["padding_config"]
    if _static(x.shape) and all(_static(c) and c[2] == 0 and min(c[:2]) >= 0 for c in config):
        return None
    for axis, (low, high, within) in enumerate(config):
        x = _spread(x, value, axis, within)
        x = padded(x, value, axis, _positive(low), _positive(high))
        if not (_positive(low) is low and _positive(high) is high):
            x = lax.slice_in_dim(x, low_cut(low), x.shape[axis] - low_cut(high), axis=axis)
    return [x]


def _positive(amount: Any) -> Any:
    """The amount, 0 for a number below it."""
    return 0 if isinstance(amount, int) and amount < 0 else amount


def low_cut(amount: Any) -> int:
    """How much a negative amount cuts."""
    return -amount if isinstance(amount, int) and amount < 0 else 0


def padded(x: Any, value: Any, axis: int, low: Any, high: Any) -> Any:
    """x with `low` values before and `high` after; amounts may be symbolic."""
    blocks = []
    for amount in (low, high):
        shape = (*x.shape[:axis], amount, *x.shape[axis + 1 :])
        blocks.append(None if isinstance(amount, int) and amount == 0 else lax.broadcast(value, shape))
    kept = [b for b in (blocks[0], x, blocks[1]) if b is not None]
    return lax.concatenate(kept, axis) if len(kept) > 1 else x


def _spread(x: Any, value: Any, axis: int, within: int) -> Any:
    """x with `within` values between neighbours."""
    if within == 0:
        return x
    x = padded(jnp.expand_dims(x, axis + 1), value, axis + 1, 0, within)
    size = x.shape[axis] * (within + 1)
    x = x.reshape(*x.shape[:axis], size, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, size - within, axis=axis)


def convolution(equation: Any, operands: list[Any]) -> list[Any] | None:
    """A convolution whose padding follows from symbolic sizes: padded first."""
    p = dict(equation.params)
    if all(_static(amounts) for amounts in p["padding"]):
        return None
    x, kernel = operands
    zero = jnp.zeros((), x.dtype)
    for axis, (low, high) in zip(p["dimension_numbers"].lhs_spec[2:], p["padding"], strict=True):
        x = padded(x, zero, axis, low, high)
    p["padding"] = ((0, 0),) * len(p["padding"])
    return [equation.primitive.bind(x, kernel, **p)]


def pooling(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Pooling as the maximum, or the sum, of the array's slices, one for each position of the window."""
    p = equation.params
    if len(operands) > 1 or not _simple(p):
        return None
    maximum = equation.primitive.name == "reduce_window_max"
    (x,) = operands
    value = jnp.asarray(_least(x.dtype) if maximum else 0, x.dtype)
    for axis, (low, high) in enumerate(p["padding"]):
        x = padded(x, value, axis, low, high)
    combine = jnp.maximum if maximum else jnp.add
    for axis, (size, stride) in enumerate(zip(p["window_dimensions"], p["window_strides"], strict=True)):
        x = _pooled(x, axis, size, stride, equation.outvars[0].aval.shape[axis], combine)
    return [x]


def _pooled(x: Any, axis: int, size: int, stride: int, count: Any, combine: Any) -> Any:
    """One axis after another: the window is a box."""
    if size == 1 and stride == 1:
        return x
    slices = [lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis=axis) for start in range(size)]
    return functools.reduce(combine, slices)


def _simple(p: Any) -> bool:
    """Whether a window has no holes and few positions along each axis."""
    flat = all(n == 1 for key in ("base_dilation", "window_dilation") for n in p[key])
    return flat and max(p["window_dimensions"]) <= MOST


def _least(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).min


def _static(sizes: Any) -> bool:
    return all(isinstance(n, int) for n in sizes)
