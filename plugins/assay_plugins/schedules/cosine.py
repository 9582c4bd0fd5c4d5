"""Cosine decay after a linear warm-up."""

import dataclasses

import optax

from assay_plugins.schedules.common import checked_decay, checked_final, checked_peak, end_of_decay, warmed_up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from `peak` down to `final * peak` (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).

    At step t, with warm-up w and end d: peak * (t + 1) / (w + 1) while t < w; then
    peak * (final + (1 - final) * (1 + cos(pi * (t - w) / (d - w))) / 2) while t < d; then peak * final.

    peak: highest learning rate, reached at step `warmup_steps`. final: fraction of the peak that is left in the end.
    decay_steps: the step at which the decay is complete, warm-up included; None for the experiment's steps.
    """

    peak: float
    warmup_steps: int = 0
    final: float = 0.0
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked_peak(self.peak, self.warmup_steps)
        checked_final(self.final)
        checked_decay(self.decay_steps)

    def build(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate. Raises ConfigError when the warm-up leaves no step to decay in."""
        steps = end_of_decay(self.warmup_steps, self.decay_steps, total_steps) - self.warmup_steps
        return warmed_up(self.peak, self.warmup_steps, optax.cosine_decay_schedule(self.peak, steps, self.final))
