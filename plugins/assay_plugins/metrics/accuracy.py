"""Accuracy: the share of items whose true class is the first, or among the first k, by score; the share of rows all right."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Outcome
from assay_plugins.metrics.common import State, added, among_best, ratio, scores_of, weighted_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """sum(w * right) / sum(w), right where no class comes before the target; of equal scores the lower class comes first."""

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Sums of right items and of weights."""
        return _right(outcome, "accuracy", 1)

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """`accuracy`, from 0 to 1; NaN for an empty split."""
        return {"accuracy": ratio(state["right"], state["weight"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    """sum(w * right) / sum(w), right where fewer than k classes come before the target; of equal scores the lower comes first.

    k: how many guesses there are.
    """

    k: int = 5

    def __post_init__(self) -> None:
        """Raise ValueError for no guess."""
        if self.k < 1:
            raise ValueError(f"k = {self.k}: must be at least 1")

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Sums of right items and of weights. Raises ConfigError when there are not more than k classes."""
        return _right(outcome, "top_k", self.k)

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """`top_<k>_accuracy`, from 0 to 1; NaN for an empty split."""
        return {f"top_{self.k}_accuracy": ratio(state["right"], state["weight"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """The share of rows all of whose items that count are right; for a language model, of answers that greedy decoding gets right.

    A row without an item that counts does not count.
    """

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Sums of right rows and of all."""
        logits, targets = scores_of(outcome, "exact_match")
        counts = outcome.weights > 0
        right = among_best(logits, targets, 1) | ~counts
        axes = tuple(range(1, counts.ndim))
        rows = jnp.any(counts, axis=axes)
        return {
            "right": jnp.sum(jnp.all(right, axis=axes) & rows).astype(jnp.float32),
            "rows": jnp.sum(rows, dtype=jnp.float32),
        }

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """`exact_match`, from 0 to 1; NaN for an empty split."""
        return {"exact_match": ratio(state["right"], state["rows"])}


def _right(outcome: Outcome, metric: str, k: int) -> dict[str, Array]:
    """Weighted sums of the items whose target is among the `k` best, and of all."""
    logits, targets = scores_of(outcome, metric)
    if k > 1 and k >= logits.shape[-1]:
        raise ConfigError(
            f"metric.top_k.k = {k}: there are {logits.shape[-1]} classes, so it would always be 1; choose a smaller k"
        )
    right = among_best(logits, targets, k)
    return {
        "right": weighted_sum(right.astype(jnp.float32), outcome.weights),
        "weight": jnp.sum(outcome.weights.astype(jnp.float32)),
    }
