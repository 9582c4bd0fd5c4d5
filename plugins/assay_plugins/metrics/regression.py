"""The root mean squared error of a regression."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Outcome
from assay_plugins.metrics.common import State, added, ratio, weighted_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSE:
    """sqrt(sum(w * loss) / sum(w)), in the target's units, of an objective whose losses are squared errors, as objective.regression's."""

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Sums of squared errors and of weights. Raises ConfigError for an objective of classes, whose losses are none."""
        if outcome.logits is not None:
            raise ConfigError(
                "experiment.metrics: metric rmse needs squared errors, and the experiment's objective predicts classes; "
                "remove @metric.rmse(), or choose @objective.regression()"
            )
        return {
            "squares": weighted_sum(outcome.losses, outcome.weights),
            "weight": jnp.sum(outcome.weights.astype(jnp.float32)),
        }

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """`rmse`; NaN for an empty split."""
        return {"rmse": math.sqrt(ratio(state["squares"], state["weight"]))}
