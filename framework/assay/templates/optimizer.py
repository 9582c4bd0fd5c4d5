"""Stochastic gradient descent on the signs of the momentum."""

import dataclasses
import math
from typing import Any

import optax
from assay.kinds import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """m = momentum * m + g, p -= learning_rate * sign(m) (Bernstein et al. 2018, arXiv:1802.04434, algorithm 2).

    learning_rate: a number, or a schedule plugin.
    """

    learning_rate: float | Schedule = 1e-3
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if isinstance(self.learning_rate, float) and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate = {self.learning_rate}: must be a positive number, or a schedule")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum = {self.momentum}: must be at least 0 and less than 1")

    def build(self, total_steps: int, axes: Any) -> optax.GradientTransformation:
        """The transformation; its momentum is placed as the parameters are."""
        return optax.chain(
            optax.trace(self.momentum),
            optax.scale_by_sign(),
            optax.scale_by_learning_rate(self.learning_rate_at(total_steps)),
        )

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        """The learning rate by step."""
        if isinstance(self.learning_rate, Schedule):
            return self.learning_rate.build(total_steps)
        return optax.constant_schedule(self.learning_rate)
