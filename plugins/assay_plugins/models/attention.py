"""Multi-head attention with grouped keys: the function, and the layer with its projections and its key-value cache."""

import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.parallel.constrain import constrain
from assay.parallel.per_device import per_device
from assay_kernels import attention as kernels
from assay_plugins.models.layers import Initializer, Linear, Norm, make_norm
from assay_plugins.models.rope import Rotation, rotate

Cache = tuple[Float[Array, "batch kv_heads length head_dim"], Float[Array, "batch kv_heads length head_dim"]]
"""Keys and values of one layer. Heads come first, since each is multiplied on its own: with positions first, every token would cost a
copy of the whole cache."""


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
    """assay_kernels.attention of each device's own examples and heads; segment_ids: of queries and keys (keys = seq)."""
    static = isinstance(offset, int)
    options: dict[str, Any] = {"causal": causal, "window": window} | ({"offset": offset} if static else {})
    arguments: Any = query, key, value, segment_ids, None if static else offset
    if dropout_key is not None:  # drawn for all heads at once, so that it does not depend on the mesh
        return _mixed(*arguments, dropout_rate=dropout_rate, dropout_key=dropout_key, **options)
    heads, one = ("batch", None, "act_heads", None), ("batch", None, None, None)
    keys, ids = one if key.shape[2] == 1 else heads, None if segment_ids is None else ("batch", None)
    axes = heads, keys, keys, ids, None
    out: Array = per_device(functools.partial(_mixed, **options), axes, heads, whole=["sequence"])(*arguments)
    return out


def _mixed(
    query: Array, key: Array, value: Array, segment_ids: Array | None, position: Array | None, **options: Any
) -> Array:
    """The op, with the arguments that are arrays by their places; position: an offset that is traced."""
    if position is not None:
        options = {**options, "offset": position}
    out: Any = kernels.attention(query, key, value, q_segment_ids=segment_ids, **options)
    mixed: Array = out
    return mixed


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
            jax.lax.dynamic_update_slice_in_dim(old, part.astype(old.dtype).transpose(0, 2, 1, 3), position, axis=2)
            for old, part in zip(cache, new, strict=True)
        )
        mixed = attention(
            query,
            keys.astype(query.dtype).transpose(0, 2, 1, 3),
            values.astype(query.dtype).transpose(0, 2, 1, 3),
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
