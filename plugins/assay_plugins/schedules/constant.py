"""A constant learning rate after a linear warm-up."""

import dataclasses

import optax

from assay_plugins.schedules.common import checked_peak, end_of_decay, warmed_up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """`peak` from step `warmup_steps` on; before, peak * (step + 1) / (warmup_steps + 1)."""

    peak: float
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked_peak(self.peak, self.warmup_steps)

    def build(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate. Raises ConfigError when the warm-up is not shorter than the run."""
        end_of_decay(self.warmup_steps, None, total_steps)
        return warmed_up(self.peak, self.warmup_steps, optax.constant_schedule(self.peak))
