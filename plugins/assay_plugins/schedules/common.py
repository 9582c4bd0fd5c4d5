"""What all schedules share: the checks of their settings, and the linear warm-up before their own shape."""

import math

import optax

from assay.errors import ConfigError


def checked_peak(peak: float, warmup_steps: int) -> None:
    """Raise ValueError for a rate or a warm-up that cannot be."""
    if not (peak > 0 and math.isfinite(peak)):
        raise ValueError(f"peak = {peak}: must be a positive number")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps = {warmup_steps}: must be at least 0")


def checked_final(final: float) -> None:
    """Raise ValueError for a fraction of the peak outside [0, 1]."""
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final = {final}: a fraction of the peak, from 0 to 1")


def checked_decay(decay_steps: int | None) -> None:
    """Raise ValueError for an end of decay before the first step."""
    if decay_steps is not None and decay_steps < 1:
        raise ValueError(f"decay_steps = {decay_steps}: must be at least 1, or None for the whole run")


def end_of_decay(warmup_steps: int, decay_steps: int | None, total_steps: int) -> int:
    """The step at which the decay is complete. Raises ConfigError when the warm-up leaves it no room."""
    end, name = (total_steps, "experiment.steps") if decay_steps is None else (decay_steps, "decay_steps")
    if warmup_steps >= end:
        raise ConfigError(
            f"learning rate schedule: warmup_steps = {warmup_steps} must be less than {name} = {end}; "
            f"shorten the warm-up or train for longer"
        )
    return end


def warmed_up(peak: float, warmup_steps: int, then: optax.Schedule) -> optax.Schedule:
    """`then`, which starts at `peak`, after a linear warm-up: peak * (step + 1) / (warmup_steps + 1) at step < warmup_steps."""
    if warmup_steps == 0:
        return then
    warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
    return optax.join_schedules([warmup, then], [warmup_steps])
