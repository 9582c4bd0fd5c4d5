"""Attention for long rows on any device: the scores of a few queries at a time."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels import Target
from assay_kernels.attention import Attention, Options
from assay_kernels.attention.reference import reference
from assay_plugins.models.checks import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkedAttention:
    """Of the op attention, on any device: chunks of queries in turn, each as the reference has it, and again in the backward pass.

    Memory grows with chunk x keys, not with queries x keys (Rabe and Staats 2021, arXiv:2112.05682), for a third of the products more in
    training. Where an implementation for the device at hand supports a call, that one runs.

    chunk: queries at a time. Fewer than twice as many are left to the reference.
    """

    op: ClassVar[str] = "attention"
    name: ClassVar[str] = "chunked"
    priority: ClassVar[int] = 3

    chunk: int = 512

    def __post_init__(self) -> None:
        """Raise ValueError for a chunk of no queries."""
        at_least(1, chunk=self.chunk)

    def supports(self, target: Target, q: Any, *others: Any) -> str | None:
        """All but dropout; what is one chunk is the reference's."""
        options: Options = others[-1]
        if options.dropout_rate:
            return "dropout draws for all queries at once"
        if q.shape[1] < 2 * self.chunk:
            return f"{q.shape[1]} queries are fewer than two chunks of {self.chunk}"
        return None

    def __call__(
        self,
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
        """What the reference gives."""
        queries = q.shape[1]
        chunks = -(-queries // self.chunk)
        by_query = (q, 1), (q_segment_ids, 1), (bias if bias is not None and bias.shape[2] > 1 else None, 2)
        parts = [None if x is None else _divided(x, axis, chunks, self.chunk) for x, axis in by_query]

        @jax.checkpoint
        def one(start: jax.Array, part: list[Any]) -> Attention:
            rows, ids, own = part
            return reference(
                rows, k, v, ids, kv_segment_ids, bias if own is None else own, start + offset, None, options
            )

        found = lax.map(lambda chunk: one(*chunk), (self.chunk * jnp.arange(chunks), parts))
        lse = None if found.lse is None else _joined(found.lse, queries)
        return Attention(_joined(found.out, queries), lse)


def _divided(x: jax.Array, axis: int, chunks: int, size: int) -> jax.Array:
    """(..., queries, ...) -> (chunks, ..., size, ...), filled up with 0."""
    missing = chunks * size - x.shape[axis]
    x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :]), axis, 0)


def _joined(x: jax.Array, queries: int) -> jax.Array:
    """(chunks, batch, size, ...) -> (batch, queries, ...)."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :queries]
