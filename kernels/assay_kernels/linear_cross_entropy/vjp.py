"""linear_cross_entropy by chunks of tokens: never more logits at once than one chunk's, in either direction.

A chunk's gradients need the cotangents of its losses. In the forward pass these are not known, and the weight's gradient is a sum over all
tokens, which cannot be scaled token by token afterwards. So there are two ways. Without announced weights the backward pass computes each
chunk's logits again: four products of tokens x width x columns in place of three. With weights the forward pass takes the cotangents
to be theirs, computes the gradients from logits that it has anyway (three products), and the backward pass compares: where the true
cotangents are a multiple of the announced ones, the gradients are scaled, and else computed again. They are right in either case. jax
takes both branches under vmap, since there the comparison is one for each element.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels import compat
from assay_kernels.linear_cross_entropy.reference import Statistics, column_of, combined, local, logits
from assay_kernels.linear_cross_entropy.reference import statistics as statistics_of
from assay_kernels.linear_cross_entropy.shapes import CrossEntropy, Options, chunk_count
from assay_kernels.target import current_target

SAME = 4e-6  # relative; cotangents that differ by less are the announced ones, in another order of rounding
Residuals = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed while jax traces: the options, the number of chunks, and into how many parts the rows of each are divided."""

    options: Options
    chunks: int
    shards: int


def chunked(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array | None, options: Options) -> CrossEntropy:
    """As `reference`."""
    chunks = chunk_count(x.shape[0], w.shape[1], current_target(), options.shards)
    plan = Plan(options, chunks, 1 if x.shape[0] % (chunks * options.shards) else options.shards)
    x, own, limit = local(x, w, labels, options)
    x, w, own, limit, weights = compat.alike(x, w, own, limit, weights)
    if weights is None:
        return combined(statistics(x, w, own, limit, plan), labels, options)
    weights = jnp.where(own >= 0, weights, 0.0).astype(jnp.promote_types(x.dtype, jnp.float32))
    return combined(announced(x, w, own, limit, weights, plan), labels, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def statistics(x: jax.Array, w: jax.Array, own: jax.Array, limit: jax.Array | None, plan: Plan) -> Statistics:
    """Those of x w, chunk by chunk; the backward pass computes logits again."""
    return forward(x, w, own, limit, plan.options, plan.chunks)


def forward(
    x: jax.Array, w: jax.Array, own: jax.Array, limit: jax.Array | None, options: Options, chunks: int
) -> Statistics:
    """The statistics of x w, in so many chunks of rows; no derivative."""

    def part(nothing: None, rows: tuple[jax.Array, jax.Array]) -> tuple[None, Statistics]:
        x, own = rows
        return None, statistics_of(logits(x, w, limit, options.softcap), own, limit)

    return _over_chunks(part, None, (x, own), chunks)[1]


def _statistics_fwd(
    x: jax.Array, w: jax.Array, own: jax.Array, limit: jax.Array | None, plan: Plan
) -> tuple[Statistics, Residuals]:
    found = forward(x, w, own, limit, plan.options, plan.chunks)
    return found, (x, w, own, limit, found.lse)


def _statistics_bwd(plan: Plan, saved: Residuals, cotangents: Statistics) -> tuple[Any, ...]:
    x, w, own, limit, lse = saved
    return *_gradients(plan, x, w, own, limit, lse, cotangents), None, None


statistics.defvjp(_statistics_fwd, _statistics_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def announced(
    x: jax.Array, w: jax.Array, own: jax.Array, limit: jax.Array | None, weights: jax.Array, plan: Plan
) -> Statistics:
    """The same; where it is differentiated, the gradients of sum(weights * loss) are computed with it."""
    return forward(x, w, own, limit, plan.options, plan.chunks)


def _announced_fwd(
    x: jax.Array, w: jax.Array, own: jax.Array, limit: jax.Array | None, weights: jax.Array, plan: Plan
) -> tuple[Statistics, Residuals]:
    def part(dw: jax.Array, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[Statistics, jax.Array]]:
        x, own, weights = rows
        scores = logits(x, w, limit, plan.options.softcap)
        found = statistics_of(scores, own, limit)
        dx, part_dw = _products(
            x, w, of_logits(scores, own, limit, found.lse, _expected(found, weights, plan), plan.options), plan
        )
        return dw + part_dw, (found, dx)

    dw, (found, dx) = _over_chunks(part, _zeros(w, weights.dtype, plan), (x, own, weights), plan.chunks)
    return found, (x, w, own, limit, found, weights, dx, jnp.sum(dw, axis=0).astype(w.dtype))


def _announced_bwd(plan: Plan, saved: Residuals, cotangents: Statistics) -> tuple[Any, ...]:
    x, w, own, limit, found, weights, dx, dw = saved
    scale, same = _compared(cotangents, _expected(found, weights, plan))
    dx, dw = lax.cond(same, lambda: (dx, dw), lambda: _gradients(plan, x, w, own, limit, found.lse, cotangents))
    scale = jnp.where(same, scale, 1.0)
    return (scale * dx).astype(x.dtype), (scale * dw).astype(w.dtype), None, None, jnp.zeros_like(weights)


announced.defvjp(_announced_fwd, _announced_bwd)


def _expected(found: Statistics, weights: jax.Array, plan: Plan) -> Statistics:
    """The cotangents of the statistics where those of the losses are `weights`."""
    o = plan.options
    return Statistics(
        lse=weights * (1.0 + 2.0 * o.z_loss * found.lse),
        chosen=-(1.0 - o.label_smoothing) * weights,
        total=-(o.label_smoothing / o.classes) * weights,
    )


def _compared(found: Statistics, expected: Statistics) -> tuple[jax.Array, jax.Array]:
    """(the factor between two sets of cotangents, whether it is one factor for all)."""
    square = jnp.sum(jnp.square(expected.chosen))
    scale = jnp.where(
        square == 0.0, 0.0, jnp.sum(found.chosen * expected.chosen) / jnp.where(square == 0.0, 1.0, square)
    )
    pairs = zip(found, (scale * e for e in expected), strict=True)
    return scale, jnp.all(jnp.stack([jnp.all(jnp.abs(f - e) <= SAME * jnp.abs(e)) for f, e in pairs]))


def _gradients(
    plan: Plan,
    x: jax.Array,
    w: jax.Array,
    own: jax.Array,
    limit: jax.Array | None,
    lse: jax.Array,
    cotangents: Statistics,
) -> tuple[jax.Array, jax.Array]:
    """(dx, dw), from logits that are computed again."""

    def part(dw: jax.Array, rows: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        x, own, lse, cotangents = rows
        scores = logits(x, w, limit, plan.options.softcap)
        dx, part_dw = _products(x, w, of_logits(scores, own, limit, lse, cotangents, plan.options), plan)
        return dw + part_dw, dx

    dw, dx = _over_chunks(part, _zeros(w, lse.dtype, plan), (x, own, lse, cotangents), plan.chunks)
    return dx, jnp.sum(dw, axis=0).astype(w.dtype)


def of_logits(
    scores: jax.Array, own: jax.Array, limit: jax.Array | None, lse: jax.Array, of: Statistics, options: Options
) -> jax.Array:
    """The cotangent of x w, (tokens, columns), from those of the statistics."""
    d = of.lse[:, None] * jnp.exp(scores - lse[:, None])
    d = d + jnp.where(column_of(scores) == own[:, None], of.chosen[:, None], 0.0)
    if options.label_smoothing:
        d = d + of.total[:, None]
    if options.softcap is not None:
        d = d * (1.0 - jnp.square(scores / options.softcap))
    return d if limit is None else jnp.where(column_of(scores) < limit, d, 0.0)


def _products(x: jax.Array, w: jax.Array, d: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """(d w^T in x's dtype, x^T d of each shard in d's): the cotangent is rounded to the inputs' dtype, sums are not."""
    rounded = d.astype(x.dtype)
    dx = jnp.dot(rounded, w.T, preferred_element_type=d.dtype).astype(x.dtype)
    of_shards = [v.reshape(plan.shards, -1, v.shape[1]) for v in (x, rounded)]
    return dx, jnp.einsum("scw,scv->swv", *of_shards, preferred_element_type=d.dtype)


def _zeros(w: jax.Array, dtype: jnp.dtype, plan: Plan) -> jax.Array:
    zeros: jax.Array = compat.alike(jnp.zeros((plan.shards, *w.shape), dtype), w)[0]
    return zeros


def _over_chunks(part: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any, count: int) -> tuple[Any, Any]:
    """`part` over `count` chunks of `rows` (arrays of tokens), in order. A row of zeros fills the last ones up.

    A chunk takes every count-th row: so where tokens are divided over devices, each device works on a part of every chunk.
    """
    if count == 1:
        return part(carry, rows)
    tokens = jax.tree.leaves(rows)[0].shape[0]
    size = -(-tokens // count)

    def divided(x: jax.Array) -> jax.Array:
        padding = [(0, size * count - tokens)] + [(0, 0)] * (x.ndim - 1)
        return jnp.swapaxes(jnp.pad(x, padding).reshape(size, count, *x.shape[1:]), 0, 1)

    carry, found = lax.scan(part, carry, jax.tree.map(divided, rows))
    return carry, jax.tree.map(lambda y: jnp.swapaxes(y, 0, 1).reshape(-1, *y.shape[2:])[:tokens], found)
