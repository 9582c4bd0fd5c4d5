"""What all metrics share: sums over the items that count, their merging, and the error of an objective that gives no scores."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from assay.errors import ConfigError
from assay.outcome import Outcome

State = dict[str, np.ndarray]


def scores_of(outcome: Outcome, metric: str) -> tuple[Float[Array, "*items classes"], Int[Array, "*items"]]:
    """(logits in fp32, targets). Raises ConfigError when the objective gives none."""
    if outcome.logits is None or outcome.targets is None:
        raise ConfigError(
            f"experiment.metrics: metric {metric} needs logits and targets, which the experiment's objective does not give; "
            f"remove @metric.{metric}() or choose another objective"
        )
    return outcome.logits.astype(jnp.float32), outcome.targets


def weighted_sum(values: Float[Array, "*items"], weights: Float[Array, "*items"]) -> Float[Array, ""]:
    """sum(values * weights) in fp32; items of weight 0 add nothing, even when not finite."""
    weights = weights.astype(jnp.float32)
    return jnp.sum(jnp.where(weights > 0, values.astype(jnp.float32), 0.0) * weights)


def among_best(logits: Float[Array, "*items classes"], targets: Int[Array, "*items"], k: int) -> Bool[Array, "*items"]:
    """Whether fewer than `k` classes come before the target; of equal scores the lower class comes first. NaN is never right."""
    classes = jnp.arange(logits.shape[-1], dtype=targets.dtype).reshape((1,) * targets.ndim + (-1,))
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)
    first = ~(logits <= chosen) | ((logits == chosen) & (classes < targets[..., None]))
    return jnp.sum(first, axis=-1) < k


def added(a: State, b: State) -> State:
    """Elementwise sums."""
    return {name: a[name] + b[name] for name in a}


def ratio(total: np.ndarray, weight: np.ndarray) -> float:
    """total / weight, and NaN for nothing."""
    return float(total / weight) if weight > 0 else float("nan")
