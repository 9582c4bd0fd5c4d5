"""What is wrong with a step, as a number that the step itself computes: nothing, a value that is not finite, or a spike of the loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from assay.train.state import Guard

FINE, NOT_FINITE, SPIKE = 0, 1, 2
LEAST_STEPS = 20  # before there is a mean to speak of
DECAY = 0.98  # of mean and variance: a memory of some 50 steps


def fault(
    loss: Float[Array, ""], gradient_norm: Float[Array, ""], guard: Guard | None, deviations: float
) -> Int[Array, ""]:
    """FINE, NOT_FINITE or SPIKE: a loss more than `deviations` standard deviations above its running mean."""
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    spike: Bool[Array, ""] = jnp.zeros((), jnp.bool_)
    if guard is not None:
        above = loss > guard.mean + deviations * jnp.sqrt(guard.variance)
        spike = (guard.count >= LEAST_STEPS) & above
    return jnp.where(finite, jnp.where(spike, SPIKE, FINE), NOT_FINITE).astype(jnp.int32)


def moved(guard: Guard | None, loss: Float[Array, ""], wrong: Int[Array, ""]) -> Guard | None:
    """The statistics one step on; those before where the step was at fault.

    Exponential mean and variance: d = x - m, m' = m + a d, v' = (1 - a)(v + a d^2) (Finch, "Incremental calculation of weighted
    mean and variance", 2009, equations 124 and 143), with a = max(1 - DECAY, 1 / n) at the n-th step, which is exact at the start.
    """
    if guard is None:
        return None
    count = guard.count + 1
    share = jnp.maximum(1 - DECAY, 1 / count.astype(jnp.float32))
    difference = loss - guard.mean
    new = Guard(
        mean=guard.mean + share * difference,
        variance=(1 - share) * (guard.variance + share * difference**2),
        count=count,
    )
    return jax.tree.map(lambda old, after: jnp.where(wrong == FINE, after, old), guard, new)
