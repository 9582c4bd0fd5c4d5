"""The specification of linear_cross_entropy in plain jax.numpy: all logits at once, derivatives by jax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels.linear_cross_entropy.shapes import CrossEntropy, Options

MASKED = -1e30  # the logit of a column that is no class


class Statistics(NamedTuple):
    """What the loss needs of each row's logits, over the columns at hand. lse: log sum exp. chosen: the label's. total: their sum."""

    lse: jax.Array
    chosen: jax.Array
    total: jax.Array


def reference(
    x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array | None, options: Options
) -> CrossEntropy:
    """x: (tokens, width). w: (width, columns). labels: (tokens,). weights announce the cotangents and change no value."""
    x, own, limit = local(x, w, labels, options)
    return combined(statistics(logits(x, w, limit, options.softcap), own, limit), labels, options)


def local(
    x: jax.Array, w: jax.Array, labels: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(x with 0 where the label is ignored, the column of each label or -1, the number of columns that are classes or None for all).

    Rows that are ignored may hold anything, NaN too, and nothing of it reaches a gradient.
    """
    columns = w.shape[1]
    counted = _counted(labels, options)
    first = 0 if options.axis_name is None else lax.axis_index(options.axis_name) * columns
    own = jnp.where(counted & (labels >= first) & (labels < first + columns), labels - first, -1)
    whole = options.axis_name is None and options.classes == columns
    limit = None if whole else jnp.asarray(options.classes - first, jnp.int32)
    return jnp.where(counted[:, None], x, jnp.zeros((), x.dtype)), own, limit


def logits(x: jax.Array, w: jax.Array, limit: jax.Array | None, softcap: float | None) -> jax.Array:
    """x w, capped (softcap * tanh(x w / softcap), Gemma 2, arXiv:2408.00118, section 2), MASKED from column `limit` on; at least fp32."""
    scores = jnp.dot(x, w, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return scores if limit is None else jnp.where(column_of(scores) < limit, scores, MASKED)


def statistics(scores: jax.Array, own: jax.Array, limit: jax.Array | None) -> Statistics:
    """Of logits (tokens, columns) and the label's column, -1 for none."""
    chosen = jnp.sum(jnp.where(column_of(scores) == own[:, None], scores, 0.0), axis=-1)
    real = scores if limit is None else jnp.where(column_of(scores) < limit, scores, 0.0)
    return Statistics(jax.nn.logsumexp(scores, axis=-1), chosen, jnp.sum(real, axis=-1))


def combined(found: Statistics, labels: jax.Array, options: Options) -> CrossEntropy:
    """The losses, from the statistics over all columns, or over those of this device where the vocabulary is divided."""
    lse, chosen, total = found if options.axis_name is None else _over_devices(found, options.axis_name)
    nll = lse - chosen
    loss, smooth = nll, options.label_smoothing
    if smooth:
        loss = (1.0 - smooth) * nll + smooth * (lse - total / options.classes)
    if options.z_loss:
        loss = loss + options.z_loss * jnp.square(lse)
    counted = _counted(labels, options)
    nothing = jnp.where(counted | _ignored(labels, options), 0.0, jnp.nan).astype(lse.dtype)
    return CrossEntropy(*(jnp.where(counted, value, nothing) for value in (loss, nll, lse)))


def column_of(scores: jax.Array) -> jax.Array:
    """int32, the shape of `scores`: each element's column."""
    return lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def _ignored(labels: jax.Array, options: Options) -> jax.Array:
    negative = labels < 0
    return negative if options.ignore_index is None else negative | (labels == options.ignore_index)


def _counted(labels: jax.Array, options: Options) -> jax.Array:
    return ~_ignored(labels, options) & (labels < options.classes)


def _over_devices(found: Statistics, axis: str) -> Statistics:
    top = lax.pmax(lax.stop_gradient(found.lse), axis)
    lse = top + jnp.log(lax.psum(jnp.exp(found.lse - top), axis))
    return Statistics(lse, lax.psum(found.chosen, axis), lax.psum(found.total, axis))
