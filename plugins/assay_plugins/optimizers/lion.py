"""Lion: the sign of an interpolated momentum."""

import dataclasses

import optax
from jaxtyping import PyTree

from assay.kinds import Schedule
from assay_plugins.optimizers.common import DecayMask, assembled, checked, decayed, schedule_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion:
    """Chen et al. 2023 (arXiv:2302.06675): p -= lr * (sign(b1 m + (1 - b1) g) + weight_decay * p), then m = b2 m + (1 - b2) g.

    Every update has the same size, so the learning rate is 3 to 10 times smaller than AdamW's and the decay as much larger.

    learning_rate: a schedule or a constant. b1: weight of the momentum in the update. b2: decay of the momentum.
    weight_decay: for the parameters chosen by decay_mask. clip_norm: largest global norm of the gradient; None for any.
    """

    learning_rate: Schedule | float
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.1
    decay_mask: DecayMask = "matrices"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked(self.learning_rate, self.clip_norm, self.weight_decay, b1=self.b1, b2=self.b2)

    def build(self, total_steps: int, axes: PyTree) -> optax.GradientTransformation:
        """The transformation; its state is one tree like the parameters, and step counts."""
        return assembled(
            self.clip_norm,
            optax.scale_by_lion(self.b1, self.b2),
            decayed(self.weight_decay, self.decay_mask, axes),
            learning_rate=self.learning_rate_at(total_steps),
        )

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate."""
        return schedule_of(self.learning_rate, total_steps)
