"""The Brier score."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """The mean squared distance of the predicted probabilities from the true class (Brier, 1950): 0 is best, 2 is worst."""

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, jax.Array]:
        """Sums over one batch; items of weight 0 add nothing. Raises ConfigError for an objective without logits."""
        if outcome.logits is None or outcome.targets is None:
            raise ConfigError(
                "metric.my_plugin needs an objective with logits and targets, such as @objective.classification()"
            )
        probabilities = jax.nn.softmax(outcome.logits.astype(jnp.float32))
        true = jax.nn.one_hot(outcome.targets, probabilities.shape[-1])
        weights = outcome.weights.astype(jnp.float32)
        distance = jnp.where(weights > 0, jnp.sum((probabilities - true) ** 2, axis=-1), 0.0)
        return {"distance": jnp.sum(distance * weights), "weight": jnp.sum(weights)}

    def merge(self, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The sums of two sets of batches together."""
        return {name: a[name] + b[name] for name in a}

    def compute(self, state: dict[str, np.ndarray]) -> dict[str, float]:
        """`brier`, from the sums of the whole split; NaN for an empty one."""
        return {"brier": float(state["distance"] / state["weight"]) if state["weight"] else float("nan")}
