"""The conformance kit of optimizers: the shipped ones pass, equal to optax's, and each check catches the optimizer that it is for."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

from assay.testing import OptimizerKit
from assay_plugins.optimizers.adafactor import Adafactor
from assay_plugins.optimizers.adamw import AdamW
from assay_plugins.optimizers.lion import Lion
from assay_plugins.optimizers.muon import Muon
from assay_plugins.optimizers.sgd import SGD
from assay_plugins.schedules.cosine import Cosine

MATRICES = {
    "embedding": {"table": True},
    "dense": {"kernel": True, "bias": False},
    "norm": {"scale": False},
}
KINDS = {
    "embedding": {"table": "other"},
    "dense": {"kernel": "hidden", "bias": "other"},
    "norm": {"scale": "other"},
}


def adamw(total: int) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(1e-2, total)
    return optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(rate, weight_decay=0.1, mask=MATRICES))


def muon(total: int) -> optax.GradientTransformation:
    """Optax's own partition gives the others Nesterov's Adam, and decays all of them; the plugin's is AdamW."""
    matrices = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
    kinds = {
        "hidden": optax.contrib.muon(1e-2, weight_decay=0.1, consistent_rms=0.2),
        "other": optax.adamw(1e-2, b2=0.95, weight_decay=0.1, mask=matrices),
    }
    return optax.partition(kinds, KINDS)


SHIPPED = {
    "adamw": (AdamW(learning_rate=Cosine(peak=1e-2), weight_decay=0.1, clip_norm=0.1), adamw),
    "lion": (Lion(learning_rate=1e-3), lambda total: optax.lion(1e-3, weight_decay=0.1, mask=MATRICES)),
    "sgd": (SGD(learning_rate=1e-2), lambda total: optax.sgd(1e-2, momentum=0.9)),
    "adafactor": (
        Adafactor(learning_rate=1e-2, factor_from=8),
        lambda total: optax.adafactor(1e-2, min_dim_size_to_factor=8),
    ),
    "muon": (Muon(learning_rate=1e-2), muon),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_optimizers_pass(name, kit_around, failures) -> None:
    plugin, reference = SHIPPED[name]
    assert failures(kit_around(OptimizerKit, plugin, reference=lambda self, total: reference(total))) == {}


def test_with_an_experiment_the_run_is_as_long_as_the_experiment_s(kit_around) -> None:
    plugin = AdamW(learning_rate=Cosine(peak=6e-4, warmup_steps=200))
    kit = kit_around(OptimizerKit, plugin, experiment=SimpleNamespace(steps=4000))
    kit.test_the_loss_falls_and_stays_finite()
    kit.test_the_learning_rate_is_finite_and_not_negative()


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum, and a place for one mistake."""

    flaw: str = ""
    memory: list = dataclasses.field(default_factory=list)

    def build(self, total_steps, axes):
        return optax.GradientTransformation(self.init, self.update)

    def init(self, params):
        if self.flaw == "flattened":
            return {"all": jnp.zeros(sum(p.size for p in jax.tree.leaves(params)))}
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, gradients, state, params=None):
        flaw = self.flaw
        if flaw == "flattened":
            return jax.tree.map(lambda g: -0.05 * g, gradients), {"all": state["all"] + 1}
        new = jax.tree.map(lambda m, g: 0.9 * m + g, state, gradients)
        rate = 0.05
        if flaw == "climbs":
            rate = -rate
        if flaw == "remembers outside":
            self.memory.append(1)
            rate = 0.05 / len(self.memory)
        if flaw == "jit" and isinstance(jax.tree.leaves(gradients)[0], jax.core.Tracer):
            rate *= 1.01
        updates = jax.tree.map(lambda m: -rate * m, new)
        if flaw == "normalises":
            updates = jax.tree.map(lambda m: -rate * m / jnp.linalg.norm(m), new)
        if flaw == "half precision":
            updates = jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates)
        if flaw == "state changes type":
            new = jax.tree.map(lambda m: m.astype(jnp.bfloat16), new)
        return updates, new

    def learning_rate_at(self, total_steps):
        if self.flaw == "rate by Python":
            return lambda step: 0.05 if step < 5 else 0.01
        return optax.constant_schedule(-0.05 if self.flaw == "negative rate" else 0.05)


MUTATIONS = {
    "half precision": "test_updates_are_like_the_parameters",
    "state changes type": "test_updates_are_like_the_parameters",
    "climbs": "test_the_loss_falls_and_stays_finite",
    "normalises": "test_gradients_of_zero_do_no_harm",
    "negative rate": "test_the_learning_rate_is_finite_and_not_negative",
    "rate by Python": "test_the_learning_rate_is_finite_and_not_negative",
    "jit": "test_compiled_equals_eager",
    "flattened": "test_its_state_is_divided_as_the_parameters_are",
    "remembers outside": "test_a_resumed_run_equals_an_uninterrupted_one",
    "another": "test_it_equals_its_reference",
}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw, kit_around) -> None:
    kit = kit_around(OptimizerKit, Momentum(flaw), reference=lambda self, total: optax.sgd(0.05))
    with pytest.raises((AssertionError, jax.errors.TracerBoolConversionError)):
        getattr(kit, MUTATIONS[flaw])()


def test_the_sound_one_passes(kit_around, failures) -> None:
    kit = kit_around(OptimizerKit, Momentum(), reference=lambda self, total: optax.sgd(0.05, momentum=0.9))
    assert failures(kit) == {}
