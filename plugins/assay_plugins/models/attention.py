"""Multi-head attention with grouped keys: the function, and the layer with its projections and its key-value cache."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from assay.parallel.constrain import constrain
from assay_plugins.models.layers import Initializer, Linear, Norm, dropout, make_norm
from assay_plugins.models.rope import Rotation, rotate

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers; exp gives exactly 0 in fp32

Cache = tuple[Float[Array, "batch length kv_heads head_dim"], Float[Array, "batch length kv_heads head_dim"]]
"""Keys and values of one layer."""


def attention(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads head_dim"],
    *,
    causal: bool,
    window: int | None = None,
    offset: int | Int[Array, ""] = 0,
    segment_ids: Int[Array, "batch seq"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """softmax(query key^T / sqrt(head_dim)) value (Vaswani et al. 2017, arXiv:1706.03762, eq. 1); softmax in fp32.

    heads: a multiple of kv_heads; consecutive query heads share a key head (Ainslie et al. 2023, arXiv:2305.13245).
    causal: query i attends to keys up to i + offset, with a window to the last `window` of them only.
    segment_ids: attend within the same segment only (keys = seq).
    """
    batch, seq, heads, head_dim = query.shape
    kv_heads, keys = key.shape[2], key.shape[1]
    # The queries that share a key head are rows of one product: one batch dimension fewer, which XLA's CPU code likes.
    grouped = (
        query.reshape(batch, seq, kv_heads, -1, head_dim)
        .transpose(0, 2, 3, 1, 4)
        .reshape(batch, kv_heads, -1, head_dim)
    )
    scores = jnp.einsum("bknd,bskd->bkns", grouped, key, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    scores = scores.reshape(batch, heads, seq, keys)
    mask = _mask(seq, keys, causal, window, offset, segment_ids)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype), dropout_rate, dropout_key)
    mixed = jnp.einsum("bkns,bskd->bknd", weights.reshape(batch, kv_heads, -1, keys), value)
    return mixed.reshape(batch, kv_heads, -1, seq, head_dim).transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _mask(
    seq: int,
    keys: int,
    causal: bool,
    window: int | None,
    offset: int | Int[Array, ""],
    segment_ids: Int[Array, "batch seq"] | None,
) -> Bool[Array, "rows 1 seq keys"] | None:
    """True where a query may attend to a key; None for everywhere."""
    parts = []
    if causal:
        last = jax.lax.broadcasted_iota(jnp.int32, (1, 1, seq, keys), 2) + offset
        columns = jax.lax.broadcasted_iota(jnp.int32, (1, 1, seq, keys), 3)
        parts.append(columns <= last)
        if window is not None:
            parts.append(columns > last - window)
    if segment_ids is not None:
        parts.append((segment_ids[:, :, None] == segment_ids[:, None, :])[:, None])
    return functools.reduce(operator.and_, parts) if parts else None


class Attention(nnx.Module):
    """Projections of queries, keys and values, `attention`, and the projection back.

    The three projections are products of their own: joined to one they are no faster on CPU.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        causal: bool,
        biases: bool,
        qk_norm: Norm | None,
        norm_epsilon: float,
        dropout_rate: float,
        init: Initializer,
        out_init: Initializer,
        rngs: nnx.Rngs,
        out_bias: bool | None = None,
        window: int | None = None,
    ) -> None:
        """biases: of queries, keys and values; out_bias: of the projection back, None for the same."""
        self.causal, self.window, self.dropout_rate = causal, window, dropout_rate
        embed, keys = {"embed": width}, {"kv_heads": kv_heads, "head_dim": head_dim}
        queries = {"heads": heads, "head_dim": head_dim}
        self.query = Linear(embed, queries, init=init, bias=biases, rngs=rngs)
        self.key = Linear(embed, keys, init=init, bias=biases, rngs=rngs)
        self.value = Linear(embed, keys, init=init, bias=biases, rngs=rngs)
        last = biases if out_bias is None else out_bias
        self.out = Linear(queries, embed, init=out_init, bias=last, rngs=rngs)
        norms = [qk_norm and make_norm(qk_norm, "head_dim", head_dim, epsilon=norm_epsilon, bias=False) for _ in "qk"]
        self.query_norm, self.key_norm = norms

    def __call__(
        self,
        x: Float[Array, "batch seq width"],
        *,
        rope: Rotation | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "batch seq width"]:
        """Each position's mixture of the values it may attend to."""
        query, key, value = self._project(x, rope)
        mixed = attention(
            query,
            key,
            value,
            causal=self.causal,
            window=self.window,
            segment_ids=segment_ids,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.out(constrain(mixed, "batch", "sequence", "act_heads", None))

    def decode(
        self,
        x: Float[Array, "batch new width"],
        cache: Cache,
        position: int | Int[Array, ""],
        *,
        rope: Rotation | None = None,
    ) -> tuple[Float[Array, "batch new width"], Cache]:
        """The same for positions [position, position + new), whose keys and values go into the cache."""
        query, *new = self._project(x, rope)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, part.astype(old.dtype), position, axis=1)
            for old, part in zip(cache, new, strict=True)
        )
        mixed = attention(
            query,
            keys.astype(query.dtype),
            values.astype(query.dtype),
            causal=self.causal,
            window=self.window,
            offset=position,
        )
        return self.out(mixed), (keys, values)

    def _project(self, x: Array, rope: Rotation | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values of `x`, normalised and turned."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        query = constrain(query, "batch", "sequence", "act_heads", None)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return (query, key, value) if rope is None else (rotate(query, rope), rotate(key, rope), value)
