"""AdamW: Adam with decoupled weight decay."""

import dataclasses

import optax
from jaxtyping import PyTree

from assay.kinds import Schedule
from assay_plugins.optimizers.common import DecayMask, assembled, checked, decayed, schedule_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Loshchilov and Hutter 2019 (arXiv:1711.05101), in PyTorch's and optax's form: the decay is times the learning rate.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= lr * ((m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * p)

    learning_rate: a schedule or a constant. b1, b2: decay of the first and second moment. eps: added to the root.
    weight_decay: for the parameters chosen by decay_mask. clip_norm: largest global norm of the gradient; None for any.
    """

    learning_rate: Schedule | float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_mask: DecayMask = "matrices"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked(self.learning_rate, self.clip_norm, self.weight_decay, b1=self.b1, b2=self.b2)

    def build(self, total_steps: int, axes: PyTree) -> optax.GradientTransformation:
        """The transformation; its state is two trees like the parameters, and step counts."""
        return assembled(
            self.clip_norm,
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            decayed(self.weight_decay, self.decay_mask, axes),
            learning_rate=self.learning_rate_at(total_steps),
        )

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate."""
        return schedule_of(self.learning_rate, total_steps)
