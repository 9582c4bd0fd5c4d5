"""Expected calibration error: how far confidence is from accuracy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from assay.data.spec import DataSpec
from assay.outcome import Outcome
from assay_plugins.metrics.common import State, added, scores_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """sum over bins of (weight of the bin / all weight) * |mean accuracy - mean confidence| (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    bins: intervals of equal width; bin m of M holds the confidences in ((m - 1) / M, m / M].
    """

    bins: int = 15

    def __post_init__(self) -> None:
        """Raise ValueError for no bin."""
        if self.bins < 1:
            raise ValueError(f"bins = {self.bins}: must be at least 1")

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Sums of confidence, of right items and of weights in each bin, each of shape (bins,)."""
        logits, targets = scores_of(outcome, "calibration_error")
        weights = outcome.weights.astype(jnp.float32)
        best = jnp.max(logits, axis=-1)
        confidence = jnp.exp(best - jax.nn.logsumexp(logits, axis=-1))
        right = (jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets).astype(jnp.float32)
        place = jnp.clip(jnp.ceil(confidence * self.bins) - 1, 0, self.bins - 1)
        place = jnp.nan_to_num(place).reshape(-1, 1)  # NaN stays in a bin, so that it shows
        member = (place == jnp.arange(self.bins, dtype=place.dtype).reshape(1, -1)) & (weights.reshape(-1, 1) > 0)

        def by_bin(values: Array) -> Array:
            return jnp.sum(jnp.where(member, values.reshape(-1, 1), 0.0), axis=0)

        return {
            "confidence": by_bin(confidence * weights),
            "right": by_bin(right * weights),
            "weight": by_bin(weights),
        }

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """`calibration_error`, from 0 to 1; NaN for an empty split."""
        total = float(np.sum(state["weight"]))
        gap = float(np.sum(np.abs(state["right"] - state["confidence"])))
        return {"calibration_error": gap / total if total > 0 else float("nan")}
