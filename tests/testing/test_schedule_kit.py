"""The conformance kit of schedules: the shipped ones pass, equal to optax's, and each check catches the schedule that it is for."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from assay.testing import ScheduleKit
from assay_plugins.schedules.constant import Constant
from assay_plugins.schedules.cosine import Cosine
from assay_plugins.schedules.linear import Linear
from assay_plugins.schedules.wsd import WSD

SHIPPED = {
    "constant": (Constant(peak=0.1), optax.constant_schedule(0.1)),
    "cosine": (Cosine(peak=0.1), optax.cosine_decay_schedule(0.1, 60)),
    "linear": (Linear(peak=0.1), optax.linear_schedule(0.1, 0.0, 60)),
    "wsd": (WSD(peak=0.1, warmup_steps=5), None),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_schedules_pass(name, kit_around, failures) -> None:
    plugin, reference = SHIPPED[name]
    assert failures(kit_around(ScheduleKit, plugin, reference=lambda self, total: reference)) == {}


@dataclasses.dataclass(frozen=True)
class Of:
    """A schedule plugin of a function of the step."""

    rate: Callable

    def build(self, total_steps: int) -> Callable:
        return self.rate


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
