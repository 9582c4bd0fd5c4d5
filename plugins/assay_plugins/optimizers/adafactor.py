"""Adafactor: second moments of matrices kept as the product of a row and a column."""

import dataclasses

import optax
from jaxtyping import PyTree

from assay.kinds import Schedule
from assay_plugins.optimizers.common import DecayMask, assembled, checked, decayed, schedule_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Shazeer and Stern 2018 (arXiv:1804.04235), algorithm 4, with an explicit learning rate and no first moment.

    With V the running mean of g^2 + 1e-30, kept as row and column means where a parameter is large: u = g / sqrt(V),
    u /= max(1, rms(u) / update_clip), u *= max(1e-3, rms(p)) if relative, p -= lr * (u + weight_decay * p).

    learning_rate: a schedule or a constant. decay_exponent: c of the running mean's decay 1 - t^-c.
    relative: step size in proportion to the parameter's root mean square. update_clip: largest root mean square of an update.
    factor_from: smallest size of the second largest dimension at which V is factored.
    weight_decay: for the parameters chosen by decay_mask. clip_norm: largest global norm of the gradient; None for any.
    """

    learning_rate: Schedule | float
    decay_exponent: float = 0.8
    relative: bool = True
    update_clip: float = 1.0
    factor_from: int = 128
    weight_decay: float = 0.0
    decay_mask: DecayMask = "matrices"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked(self.learning_rate, self.clip_norm, self.weight_decay, decay_exponent=self.decay_exponent)
        if not self.update_clip > 0:
            raise ValueError(f"update_clip = {self.update_clip}: must be positive")
        if self.factor_from < 1:
            raise ValueError(f"factor_from = {self.factor_from}: must be at least 1")

    def build(self, total_steps: int, axes: PyTree) -> optax.GradientTransformation:
        """The transformation; its state is a row and a column of each large matrix, one tree of the rest, and step counts."""
        return assembled(
            self.clip_norm,
            optax.scale_by_factored_rms(decay_rate=self.decay_exponent, min_dim_size_to_factor=self.factor_from),
            optax.clip_by_block_rms(self.update_clip),
            optax.scale_by_param_block_rms() if self.relative else optax.identity(),
            decayed(self.weight_decay, self.decay_mask, axes),
            learning_rate=self.learning_rate_at(total_steps),
        )

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate."""
        return schedule_of(self.learning_rate, total_steps)
