"""linear_cross_entropy in the least memory: forward by chunks of tokens, backward by blocks of the vocabulary.

A block's columns of w's gradient come from one product over all tokens. So nothing of w's size is added up in fp32, and no gradient waits
for the backward pass, which is what chunks of tokens cost; but logits are always computed again, four products in place of three.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels import compat
from assay_kernels.linear_cross_entropy.reference import Statistics, column_of, combined, local, logits
from assay_kernels.linear_cross_entropy.shapes import CrossEntropy, Options, block_width, forward_chunk_count
from assay_kernels.linear_cross_entropy.vjp import Residuals, forward, of_logits
from assay_kernels.target import current_target


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed while jax traces: the options, the number of chunks of tokens, and the width of a block."""

    options: Options
    chunks: int
    block: int


def blocked(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array | None, options: Options) -> CrossEntropy:
    """As `reference`; weights help nothing here."""
    tokens, columns, target = x.shape[0], w.shape[1], current_target()
    plan = Plan(options, forward_chunk_count(tokens, columns, target), block_width(tokens, columns, target))
    x, own, limit = local(x, w, labels, options)
    x, w, own, limit = compat.alike(x, w, own, limit)
    return combined(statistics(x, w, own, limit, plan), labels, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def statistics(x: jax.Array, w: jax.Array, own: jax.Array, limit: jax.Array | None, plan: Plan) -> Statistics:
    """Those of x w."""
    return forward(x, w, own, limit, plan.options, plan.chunks)


def _fwd(
    x: jax.Array, w: jax.Array, own: jax.Array, limit: jax.Array | None, plan: Plan
) -> tuple[Statistics, Residuals]:
    found = forward(x, w, own, limit, plan.options, plan.chunks)
    return found, (x, w, own, limit, found.lse)


def _bwd(plan: Plan, saved: Residuals, cotangents: Statistics) -> tuple[Any, ...]:
    x, w, own, limit, lse = saved
    columns, block = w.shape[1], plan.block

    def part(carry: tuple[jax.Array, jax.Array], first: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        dx, dw = carry
        at = jnp.minimum(first, columns - block)  # the last block overlaps the one before
        of_block = lax.dynamic_slice_in_dim(w, at, block, axis=1)
        there = None if limit is None else limit - at
        scores = logits(x, of_block, there, plan.options.softcap)
        d = of_logits(scores, own - at, there, lse, cotangents, plan.options).astype(x.dtype)
        columns_dw = jnp.dot(x.T, d, preferred_element_type=lse.dtype).astype(w.dtype)
        new = d if columns % block == 0 else jnp.where(column_of(d) >= first - at, d, jnp.zeros((), d.dtype))
        dx = dx + jnp.dot(new, of_block.T, preferred_element_type=lse.dtype)
        return (dx, lax.dynamic_update_slice_in_dim(dw, columns_dw, at, axis=1)), None

    start = compat.alike(jnp.zeros(x.shape, lse.dtype), jnp.zeros(w.shape, w.dtype), w)[:2]
    (dx, dw), _ = lax.scan(part, start, jnp.arange(0, columns, block))
    return dx.astype(x.dtype), dw, None, None


statistics.defvjp(_fwd, _bwd)
