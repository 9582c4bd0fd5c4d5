"""Stochastic gradient descent with momentum."""

import dataclasses

import optax
from jaxtyping import PyTree

from assay.kinds import Schedule
from assay_plugins.optimizers.common import DecayMask, assembled, checked, decayed, schedule_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
    """g += weight_decay * p, m = momentum * m + g, p -= lr * m; with nesterov p -= lr * (g + momentum * m) (Sutskever et al. 2013).

    The decay is the gradient of weight_decay * |p|^2 / 2, inside the momentum, as is usual for this optimizer (PyTorch's form).

    learning_rate: a schedule or a constant. momentum: 0 for none. weight_decay: for the parameters chosen by decay_mask.
    clip_norm: largest global norm of the gradient, before the decay is added; None for any.
    """

    learning_rate: Schedule | float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_mask: DecayMask = "matrices"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked(self.learning_rate, self.clip_norm, self.weight_decay, momentum=self.momentum)
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov = True with momentum = 0.0: there is no momentum to look ahead along")

    def build(self, total_steps: int, axes: PyTree) -> optax.GradientTransformation:
        """The transformation; its state is one tree like the parameters (none without momentum), and a step count."""
        return assembled(
            self.clip_norm,
            decayed(self.weight_decay, self.decay_mask, axes),
            optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity(),
            learning_rate=self.learning_rate_at(total_steps),
        )

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate."""
        return schedule_of(self.learning_rate, total_steps)
