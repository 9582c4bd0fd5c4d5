"""Warm-up, stable, decay: a schedule whose long middle does not depend on the length of the run."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax

from assay.errors import ConfigError
from assay_plugins.schedules.common import checked_final, checked_peak, warmed_up

Shape = Literal["linear", "cosine", "sqrt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WSD:
    """`peak` after the warm-up, then a decay to `final * peak` over the last part of the run.

    Hu et al. 2024 (MiniCPM, arXiv:2404.06395); the shapes are those compared by Hägele et al. 2024 (arXiv:2405.18392).
    With x from 0 to 1 over the decay, the rate is peak * (final + (1 - final) * f(x)).

    peak: highest learning rate, reached at step `warmup_steps`. final: fraction of the peak that is left in the end.
    decay_fraction: share of the experiment's steps that the decay takes, rounded to whole steps.
    shape: f, "linear" 1 - x, "cosine" (1 + cos(pi x)) / 2, or "sqrt" 1 - sqrt(x).
    """

    peak: float
    warmup_steps: int = 0
    final: float = 0.0
    decay_fraction: float = 0.2
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked_peak(self.peak, self.warmup_steps)
        checked_final(self.final)
        if not 0.0 < self.decay_fraction <= 1.0:
            raise ValueError(f"decay_fraction = {self.decay_fraction}: must be greater than 0 and at most 1")

    def build(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate. Raises ConfigError when warm-up and decay together are longer than the run."""
        decay = max(1, round(self.decay_fraction * total_steps))
        if self.warmup_steps + decay > total_steps:
            raise ConfigError(
                f"learning rate schedule: warmup_steps = {self.warmup_steps} and a decay of {decay} steps (decay_fraction = "
                f"{self.decay_fraction}) do not fit into experiment.steps = {total_steps}; shorten one of them or train for longer"
            )
        stable = total_steps - self.warmup_steps - decay
        pieces = [optax.constant_schedule(self.peak), _decay(self.shape, self.peak, self.final, decay)]
        return warmed_up(self.peak, self.warmup_steps, optax.join_schedules(pieces, [stable]))


def _decay(shape: Shape, peak: float, final: float, steps: int) -> optax.Schedule:
    """`peak` at 0, `final * peak` from `steps` on."""
    if shape == "linear":
        return optax.linear_schedule(peak, peak * final, steps)
    if shape == "cosine":
        return optax.cosine_decay_schedule(peak, steps, final)
    return lambda step: peak * (final + (1.0 - final) * (1.0 - jnp.sqrt(jnp.clip(step / steps, 0.0, 1.0))))
