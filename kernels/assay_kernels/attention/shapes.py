"""What attention is asked for, and what its arguments must be."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Attention(NamedTuple):
    """out: (B, T, N, D), the dtype of v. lse: (B, T, N), log of the sum of exp(scores), at least fp32; None where it was not asked for."""

    out: jax.Array
    lse: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of attention. scale: None for 1 / sqrt(head_dim). lse: whether it is returned."""

    causal: bool = False
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout_rate: float = 0.0
    lse: bool = False


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The dimensions of one call."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.heads // self.kv_heads


def sizes_of(q: jax.Array, k: jax.Array) -> Sizes:
    """The dimensions of q and k, checked before."""
    return Sizes(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3])


def may_be_empty(
    sizes: Sizes,
    offset: int | jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    bias: jax.Array | None,
    options: Options,
) -> bool:
    """Whether a query may see no key at all, as far as it is known while jax traces."""
    if sizes.keys == 0 or bias is not None:
        return True
    if q_segment_ids is not None and (q_segment_ids is not kv_segment_ids or (options.causal and not is_zero(offset))):
        return True
    if not options.causal:
        return False
    if not isinstance(offset, int):
        return True
    last = sizes.queries - 1 + offset
    return offset < 0 or (options.window is not None and last - options.window >= sizes.keys - 1)


def is_zero(offset: int | jax.Array) -> bool:
    """Whether the offset is known to be 0."""
    return isinstance(offset, int) and offset == 0


def check(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    bias: jax.Array | None,
    offset: int | jax.Array,
    options: Options,
) -> None:
    """Raise TypeError or ValueError, in words, for arguments that are not as the op's documentation says."""
    if not jnp.issubdtype(q.dtype, jnp.floating) or not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q is {q.dtype}, k {k.dtype} and v {v.dtype}: they must have one floating point dtype")
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3]:
        raise ValueError(
            f"q {q.shape}, k {k.shape} and v {v.shape}: must be (batch, queries, heads, head_dim) and twice "
            "(batch, keys, kv_heads, head_dim)"
        )
    if not k.shape[2] or q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads cannot share {k.shape[2]} key heads evenly")
    if not q.shape[3]:
        raise ValueError("head_dim is 0")
    _check_segments(q, k, q_segment_ids, kv_segment_ids)
    if bias is not None:
        _check_bias(bias, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    if not isinstance(offset, int) and (offset.shape != () or not jnp.issubdtype(offset.dtype, jnp.integer)):
        raise TypeError(f"offset is {offset.dtype}{list(offset.shape)}: must be one integer")
    _check_options(options)


def _check_segments(
    q: jax.Array, k: jax.Array, q_segment_ids: jax.Array | None, kv_segment_ids: jax.Array | None
) -> None:
    if q_segment_ids is None and kv_segment_ids is None:
        return
    if q_segment_ids is None or kv_segment_ids is None:
        raise ValueError("kv_segment_ids without q_segment_ids: give both, or those of the queries alone")
    for name, ids, tokens in (
        ("q_segment_ids", q_segment_ids, q.shape[:2]),
        ("kv_segment_ids", kv_segment_ids, k.shape[:2]),
    ):
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise TypeError(f"{name} are {ids.dtype}: must be integers")
        if ids.shape != tokens:
            raise ValueError(f"{name} {ids.shape}: must be one for each token, {tokens}")


def _check_bias(bias: jax.Array, full: tuple[int, ...]) -> None:
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise TypeError(f"bias is {bias.dtype}: must be floating point")
    try:
        fits = len(bias.shape) == 4 and np.broadcast_shapes(bias.shape, full) == full
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"bias {bias.shape}: must have four dimensions that broadcast to (B, N, T, S) = {full}")


def _check_options(o: Options) -> None:
    if o.window is not None and not o.causal:
        raise ValueError("a window without causal: a query would see the keys after it; give causal=True")
    if o.window is not None and o.window < 1:
        raise ValueError(f"window = {o.window}: must be at least 1, the query's own position")
    if o.scale is not None and not o.scale > 0.0:
        raise ValueError(f"scale = {o.scale}: must be greater than 0")
    if o.softcap is not None and not o.softcap > 0.0:
        raise ValueError(f"softcap = {o.softcap}: must be greater than 0")
    if not 0.0 <= o.dropout_rate < 1.0:
        raise ValueError(f"dropout_rate = {o.dropout_rate}: must be at least 0 and less than 1")
