"""The conformance kit of objectives: the shipped ones pass, and each check catches the objective that it is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.outcome import Outcome
from assay.testing import ObjectiveKit
from assay_plugins.datasets.arithmetic import Arithmetic
from assay_plugins.datasets.digits import Digits
from assay_plugins.models.dit import DiT
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.with_reference import WithReference
from assay_plugins.objectives.classification import Classification
from assay_plugins.objectives.ddpm import DDPM
from assay_plugins.objectives.dpo import DPO
from assay_plugins.objectives.edm import EDM
from assay_plugins.objectives.grpo import GRPO
from assay_plugins.objectives.next_token import NextToken

SMALL = Transformer(layers=1, width=16, heads=2)


def sums(self, size: int):
    return Arithmetic().source("train").gather(np.arange(size)) | {"mask": np.ones(size, np.bool_)}


# Training draws noise by the place in the batch, so a part of a batch has other noise than the whole.
OF_DIGITS = {
    "model": lambda self: DiT(patch=4, width=32, layers=1, heads=4),
    "spec": lambda self: Digits().spec(),
    "by_example": False,
}
OF_SUMS = {"spec": lambda self: Arithmetic().spec(), "batch": sums}
SHIPPED = {
    "next_token": (NextToken(z_loss=1e-3, label_smoothing=0.1), {}),
    "next_token, fused": (
        NextToken(z_loss=1e-3, fused_head="auto"),
        {"model": lambda self: SMALL, **OF_SUMS},
    ),
    "classification": (Classification(label_smoothing=0.1), {}),
    "ddpm": (DDPM(timesteps=60), OF_DIGITS),
    "edm": (EDM(), OF_DIGITS),
    "dpo": (DPO(label_smoothing=0.1), {"model": lambda self: WithReference(model=SMALL), **OF_SUMS}),
    # Two completions of one prompt may both be wrong, which teaches nothing; sixteen hardly.
    "grpo": (
        GRPO(group=64, kl=0.1),
        {"model": lambda self: WithReference(model=SMALL), "by_example": False, **OF_SUMS},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_objectives_pass(name, kit_around, failures) -> None:
    plugin, overrides = SHIPPED[name]
    assert failures(kit_around(ObjectiveKit, plugin, **overrides)) == {}


@dataclasses.dataclass(frozen=True)
class Squares:
    """The squared logit of each label, with a place for one mistake."""

    flaw: str = ""

    def __call__(self, module, batch, *, train, rngs):
        flaw, logits = self.flaw, module(batch, train=train, rngs=rngs)
        losses = jnp.take_along_axis(logits, batch["label"][:, None], axis=-1)[:, 0] ** 2
        weights = jnp.ones_like(losses)
        scalars = {"largest": jnp.max(losses)}
        if flaw == "reduced":
            losses = weights = jnp.mean(losses)
        if flaw == "negative weights":
            weights = -weights
        if flaw == "vector scalar":
            scalars = {"all": losses}
        if flaw == "normalised by the batch":
            losses = losses / jnp.sum(losses)
        if flaw == "variance":
            losses = losses + jnp.sqrt(jnp.var(losses) * 0 + jnp.var(logits[:1] * 0))
        if flaw == "no gradient":
            losses = jax.lax.stop_gradient(losses)
        if flaw == "names" and len(losses) == 1:
            scalars = {"single": losses[0]}
        if flaw == "infinite scalar":
            scalars = {"inverse": 1 / jnp.float32(0) * jnp.sum(losses)}
        if flaw == "names in evaluation" and not train and len(losses) == 1:
            scalars = {"single": losses[0]}
        if flaw == "normalised in training" and train:
            losses = losses / jnp.sum(jax.lax.stop_gradient(losses))
        if flaw == "sees padding in training" and train:
            losses = losses / jnp.mean(jax.lax.stop_gradient(losses))
        if flaw == "norm of zeros":  # its derivative at an image of zeros is not finite, and the mask comes too late
            losses = losses + jnp.linalg.norm(batch["image"].reshape(len(losses), -1) * jnp.sum(logits**2), axis=-1)
        if flaw == "divided by the mask":
            losses = losses / jnp.any(batch["mask"])
        if flaw == "noise of the host":
            losses = losses + np.float32(np.random.default_rng().normal())
        if flaw == "sees padding":
            losses = losses + jnp.sum(logits)
        if flaw == "random":
            losses = losses + jax.pure_callback(noise, jax.ShapeDtypeStruct((), jnp.float32))
        if flaw == "one device" and train:
            losses = losses * own_rows(batch["label"])
        return Outcome(losses, weights, scalars=scalars)


NOISE: list[float] = []


def noise():
    NOISE.append(1.0)
    return np.float32(len(NOISE))


def own_rows(label):
    """A number that depends on how the batch is divided: rows of the first device."""
    from assay.parallel.constrain import constrain

    return 1.0 if constrain(label, "batch") is label else 1.01


MUTATIONS = {
    "reduced": "test_losses_and_weights_are_one_for_each_item",
    "negative weights": "test_losses_and_weights_are_one_for_each_item",
    "vector scalar": "test_losses_and_weights_are_one_for_each_item",
    "variance": "test_gradients_are_finite_and_there",
    "no gradient": "test_gradients_are_finite_and_there",
    "names": "test_scalars_have_the_same_names_always",
    "infinite scalar": "test_scalars_have_the_same_names_always",
    "sees padding": "test_rows_that_only_pad_change_nothing",
    "names in evaluation": "test_scalars_have_the_same_names_always",
    "sees padding in training": "test_rows_that_only_pad_change_nothing",
    "norm of zeros": "test_rows_that_only_pad_change_nothing",
    "divided by the mask": "test_nothing_but_padding_is_no_loss",
    "normalised in training": "test_a_batch_is_the_sum_of_its_parts",
    "noise of the host": "test_evaluation_is_a_function_of_the_batch",
    "normalised by the batch": "test_a_batch_is_the_sum_of_its_parts",
    "random": "test_evaluation_is_a_function_of_the_batch",
    "one device": "test_a_mesh_of_devices_changes_nothing",
}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw, kit_around) -> None:
    kit = kit_around(ObjectiveKit, Squares(flaw))
    kit.spec()
    with pytest.raises(AssertionError):
        getattr(kit, MUTATIONS[flaw])()


def test_the_sound_one_passes(kit_around, failures) -> None:
    assert failures(kit_around(ObjectiveKit, Squares())) == {}
