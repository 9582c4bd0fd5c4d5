"""The specification of attention in plain jax.numpy: all scores at once, derivatives by jax."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels.attention.shapes import Attention, Options, Sizes, may_be_empty, sizes_of

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers; exp gives exactly 0 in fp32


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    bias: jax.Array | None,
    offset: int | jax.Array,
    dropout_key: jax.Array | None,
    options: Options,
) -> Attention:
    """softmax(scores) v, scores = softcap(scale q k^T) + bias where a query may attend; the softmax is in at least fp32."""
    sizes = sizes_of(q, k)
    if 0 in (sizes.keys, q.size):
        return _nothing(q, v, options)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # The queries that share a key head are rows of one product: one batch dimension fewer, which XLA's CPU code likes.
    grouped = q.reshape(sizes.batch, sizes.queries, sizes.kv_heads, sizes.group, sizes.head_dim)
    rows = grouped.transpose(0, 2, 3, 1, 4).reshape(sizes.batch, sizes.kv_heads, -1, sizes.head_dim)
    scores = jnp.einsum("bknd,bskd->bkns", rows, k, preferred_element_type=wide)
    scores = scores / math.sqrt(sizes.head_dim) if options.scale is None else scores * options.scale
    if options.softcap is not None:
        scores = options.softcap * jnp.tanh(scores / options.softcap)
    scores = scores.reshape(sizes.batch, sizes.heads, sizes.queries, sizes.keys)
    seen = mask(sizes, offset, q_segment_ids, kv_segment_ids, options)
    if bias is not None:
        scores = scores + bias.astype(wide)
        seen = bias > -jnp.inf if seen is None else seen & (bias > -jnp.inf)
    if seen is not None:
        scores = jnp.where(seen, scores, MASKED)
    weights = _dropout(jax.nn.softmax(scores, axis=-1).astype(v.dtype), options.dropout_rate, dropout_key)
    mixed = jnp.einsum("bkns,bskd->bknd", weights.reshape(sizes.batch, sizes.kv_heads, -1, sizes.keys), v)
    mixed = mixed.reshape(sizes.batch, sizes.kv_heads, sizes.group, sizes.queries, sizes.head_dim)
    out = mixed.transpose(0, 3, 1, 2, 4).reshape(q.shape)
    lse = jax.nn.logsumexp(scores, axis=-1).transpose(0, 2, 1) if options.lse else None
    if seen is not None and may_be_empty(sizes, offset, q_segment_ids, kv_segment_ids, bias, options):
        some = jnp.broadcast_to(jnp.any(seen, axis=-1), (sizes.batch, sizes.heads, sizes.queries)).transpose(0, 2, 1)
        out = jnp.where(some[..., None], out, jnp.zeros((), out.dtype))
        lse = None if lse is None else jnp.where(some, lse, -jnp.inf)
    return Attention(out, lse)


def mask(
    sizes: Sizes,
    offset: int | jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    options: Options,
) -> jax.Array | None:
    """(1 or batch, 1, queries, keys), true where a query may attend to a key; None for everywhere."""
    parts = []
    if options.causal:
        last = lax.broadcasted_iota(jnp.int32, (1, 1, sizes.queries, sizes.keys), 2) + offset
        columns = lax.broadcasted_iota(jnp.int32, (1, 1, sizes.queries, sizes.keys), 3)
        parts.append(columns <= last)
        if options.window is not None:
            parts.append(columns > last - options.window)
    if q_segment_ids is not None and kv_segment_ids is not None:
        parts.append((q_segment_ids[:, :, None] == kv_segment_ids[:, None, :])[:, None])
    return functools.reduce(operator.and_, parts) if parts else None


def _dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0).astype(x.dtype)


def _nothing(q: jax.Array, v: jax.Array, options: Options) -> Attention:
    lse = jnp.full(q.shape[:3], -jnp.inf, jnp.promote_types(q.dtype, jnp.float32)) if options.lse else None
    return Attention(jnp.zeros(q.shape, v.dtype), lse)
