"""The conformance kit of schedules: the shipped ones pass, equal to optax's, and each check catches the schedule that it is for."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from assay.testing import ScheduleKit, run
from assay_plugins.schedules.constant import Constant
from assay_plugins.schedules.cosine import Cosine
from assay_plugins.schedules.linear import Linear
from assay_plugins.schedules.wsd import WSD


def sqrt_decay(step):
    return 0.1 * (1 - 0.75 * np.sqrt(np.clip((step - 45) / 15, 0, 1)))


# The warm-up's first rate is peak / (warmup_steps + 1). WSD of 60 steps decays over the last 12.
SHIPPED = {
    "constant": (Constant(peak=0.1), optax.constant_schedule(0.1)),
    "constant warmed up": (Constant(peak=0.1, warmup_steps=5), optax.warmup_constant_schedule(0.1 / 6, 0.1, 5)),
    "cosine": (Cosine(peak=0.1), optax.cosine_decay_schedule(0.1, 60)),
    "cosine warmed up": (
        Cosine(peak=0.1, warmup_steps=5, final=0.1),
        optax.warmup_cosine_decay_schedule(0.1 / 6, 0.1, 5, 60, 0.01),
    ),
    "linear": (Linear(peak=0.1), optax.linear_schedule(0.1, 0.0, 60)),
    "linear warmed up": (
        Linear(peak=0.1, warmup_steps=5, final=0.1),
        optax.piecewise_interpolate_schedule("linear", 0.1 / 6, {5: 6.0, 60: 0.1}),
    ),
    "wsd": (
        WSD(peak=0.1, warmup_steps=5),
        optax.piecewise_interpolate_schedule("linear", 0.1 / 6, {5: 6.0, 48: 1.0, 60: 0.0}),
    ),
    "wsd by cosine": (
        WSD(peak=0.1, final=0.2, shape="cosine"),
        optax.piecewise_interpolate_schedule("cosine", 0.1, {48: 1.0, 60: 0.2}),
    ),
    "wsd by root": (WSD(peak=0.1, final=0.25, decay_fraction=0.25, shape="sqrt"), sqrt_decay),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_schedules_pass(name, kit_around, failures) -> None:
    plugin, reference = SHIPPED[name]
    assert failures(kit_around(ScheduleKit, plugin, reference=lambda self, total: reference)) == {}


def test_with_an_experiment_the_run_is_as_long_as_the_experiment_s(kit_around) -> None:
    kit = kit_around(ScheduleKit, Cosine(peak=0.1, warmup_steps=200), experiment=SimpleNamespace(steps=4000))
    results = {r.name: r for r in run(kit)}
    assert {r.status for r in results.values()} == {"passed", "skipped"}
    assert "warmup_steps = 200" in results["test_a_run_of_one_step_has_a_rate"].detail


@dataclasses.dataclass(frozen=True)
class Of:
    """A schedule plugin of a function of the step."""

    rate: Callable

    def build(self, total_steps: int) -> Callable:
        if self.rate is from_first_to_last:
            return lambda t: 0.1 * (1 - jnp.float32(t) / jnp.float32(total_steps - 1) / 2)
        return self.rate


def from_first_to_last(step):
    """Stands for a division by the steps but one, which is 0 in a run of one step."""


class Forgetful:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return 0.1 / self.calls + jnp.float32(step) * 0


MUTATIONS = {
    "negative": (lambda t: 0.1 - 0.01 * jnp.float32(t), "test_every_rate_is_finite_and_not_negative"),
    "0 at the start": (lambda t: 0.1 / jnp.float32(t), "test_every_rate_is_finite_and_not_negative"),
    "always 0": (lambda t: 0.0 * jnp.float32(t), "test_every_rate_is_finite_and_not_negative"),
    "not for one step": (from_first_to_last, "test_a_run_of_one_step_has_a_rate"),
    "late": (lambda t: jnp.where(jnp.asarray(t) > 60, jnp.nan, 0.1), "test_every_rate_is_finite_and_not_negative"),
    "branches": (lambda t: 0.1 if t < 5 else 0.05, "test_compiled_equals_eager"),
    "needs Python": (lambda t: 0.1 / (1 + t.bit_length()) if isinstance(t, int) else jnp.float32(0.1), "test_a_step_is_any_integer"),
    "eager alone": (
        lambda t: jnp.float32(0.1 if isinstance(t, jax.core.Tracer) else 0.2), "test_compiled_equals_eager"),
    "a vector": (lambda t: jnp.full(2, 0.1), "test_a_rate_is_one_number"),
    "an integer": (lambda t: jnp.int32(1), "test_a_rate_is_one_number"),
    "forgetful": (Forgetful(), "test_building_is_repeatable"),
    "not the reference": (lambda t: jnp.float32(0.1) + 0 * jnp.float32(t), "test_it_equals_its_reference"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw, kit_around, failures) -> None:
    rate, check = MUTATIONS[flaw]
    reference = lambda self, total: optax.constant_schedule(0.2) if flaw == "not the reference" else None
    with np.errstate(divide="ignore"):
        assert check in failures(kit_around(ScheduleKit, Of(rate), reference=reference))


def test_the_sound_one_passes(kit_around, failures) -> None:
    assert failures(kit_around(ScheduleKit, Of(lambda t: 0.1 + 0 * jnp.float32(t)))) == {}
