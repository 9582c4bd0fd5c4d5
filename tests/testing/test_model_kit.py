"""The conformance kit of models: the shipped models pass it, and each check catches the model that it is for."""

import dataclasses
import unittest
from typing import Literal

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from assay.checkpoint.checkpoints import Checkpoints
from assay.parallel.constrain import constrain
from assay.testing.examples import SPECS
from assay.testing.kit import run
from assay.testing.model import ModelKit
from assay_plugins.models.mlp import MLP
from assay_plugins.models.resnet import ResNet
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.vit import ViT
from assay_plugins.models.with_reference import WithReference

SHIPPED = {
    "mlp": MLP(hidden=(16, 16)),
    "transformer": Transformer(layers=2, width=32, heads=8),
    "with_reference": WithReference(model=Transformer(layers=1, width=32, heads=8)),
    "vit": ViT(layers=1, width=32, heads=4, patch=4),
    "resnet": ResNet(widths=(8, 16), blocks=(1, 1), stem="small"),
}


def kit_of(model, **declared):
    return type("Found", (ModelKit,), {"plugin": lambda self: model, **declared})()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_pass(name):
    results = {r.name: r for r in run(kit_of(SHIPPED[name]))}
    assert [f"{r.name}: {r.detail}" for r in results.values() if r.status == "failed"] == []
    assert results["test_rematerialisation_changes_nothing"].status == (
        "passed" if name == "transformer" else "skipped"
    )


class Net(nnx.Module):
    """Two linear maps on images, and a place for one mistake."""

    def __init__(self, flaw, spec, rngs):
        self.flaw, draw = flaw, nnx.initializers.he_normal()
        features = 64
        key = jax.random.key(7) if flaw == "ignores the key" else rngs.params()
        up = draw(key, (features, 16), jnp.bfloat16 if flaw == "bf16" else jnp.float32)
        self.up = nnx.Param(up, axes=("features", "width" if flaw == "axis" else "mlp"))
        head = draw(key, (16, spec.num_classes))
        self.head = nnx.Param(head, axes=("mlp",) if flaw == "rank" else ("mlp", "classes"))
        self.spare = nnx.Param(jnp.ones((3,)), axes=(None,)) if flaw == "unused" else None

    def __call__(self, batch, *, train, rngs):
        up, head, flaw = self.up[...], self.head[...], self.flaw
        x = batch["image"].reshape(-1, up.shape[0]).astype(up.dtype)
        y = jax.nn.relu(x @ up) @ head
        if flaw == "mean":
            return jnp.mean(y, axis=0)
        if flaw == "nan":
            return y + jnp.sqrt(jnp.sum(x * 0.0) * jnp.sum(up))
        if flaw == "jit" and not isinstance(y, jax.core.Tracer):
            return y * 1.01
        if flaw == "overflow":
            return jnp.exp(y.astype(jnp.bfloat16) * (1.0 if y.dtype == jnp.float32 else 900.0)).astype(jnp.float32)
        if flaw == "mesh" and constrain(y, "batch", None) is not y:
            return y * 1.01
        if flaw == "random" and not train:
            return y + jax.pure_callback(noise, jax.ShapeDtypeStruct((), jnp.float32))
        if flaw == "callback":
            return y + jax.pure_callback(lambda: jnp.float32(0), jax.ShapeDtypeStruct((), jnp.float32))
        return y


NOISE: list[float] = []


def noise():
    NOISE.append(1.0)
    return jnp.float32(len(NOISE))


@dataclasses.dataclass(frozen=True)
class Flawed:
    flaw: str = ""

    def build(self, spec, rngs):
        return Net(self.flaw, spec, rngs)

    def parameter_count(self, spec):
        return 64 * 16 + 16 * spec.num_classes + (self.flaw == "count")


class OnImages(ModelKit):
    flaw = ""

    def plugin(self):
        return Flawed(self.flaw)

    def spec(self):
        return SPECS["images"]


MUTATIONS = {
    "rank": "test_parameters_are_fp32_with_logical_axes",
    "axis": "test_parameters_are_fp32_with_logical_axes",
    "bf16": "test_parameters_are_fp32_with_logical_axes",
    "ignores the key": "test_initialisation_is_a_function_of_the_key",
    "mean": "test_there_is_an_output_for_each_example",
    "jit": "test_compiled_equals_eager",
    "random": "test_a_call_can_be_repeated",
    "nan": "test_gradients_are_finite_and_reach_every_parameter",
    "unused": "test_gradients_are_finite_and_reach_every_parameter",
    "overflow": "test_bfloat16_stays_near",
    "mesh": "test_a_mesh_of_devices_changes_nothing",
    "callback": "test_exports",
    "count": "test_the_parameter_count_is_as_declared",
}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw):
    name = MUTATIONS[flaw]
    getattr(OnImages(), name)()
    broken = type("Broken", (OnImages,), {"flaw": flaw})()
    with pytest.raises(AssertionError):
        getattr(broken, name)()


def test_a_declared_failure_is_skipped_with_its_reason_and_a_declared_success_fails():
    name = "test_the_parameter_count_is_as_declared"
    declared = type("Declared", (OnImages,), {"flaw": "count", "expected_failures": {name: "the head is shared"}})
    with pytest.raises(unittest.SkipTest, match="the head is shared"):
        getattr(declared(), name)()
    needless = type("Needless", (OnImages,), {"expected_failures": {name: "none"}})
    with pytest.raises(AssertionError, match="take it out"):
        getattr(needless(), name)()
    unknown = type("Unknown", (OnImages,), {"expected_failures": {"test_the_parameter_count": "none"}})
    with pytest.raises(ValueError, match="Did you mean"):
        getattr(unknown(), name)()


KEPT: list[jax.Array] = []


class Greedy(Flawed):
    def build(self, spec, rngs):
        with jax.ensure_compile_time_eval():
            KEPT.append(jnp.ones((8, 8)))
        return super().build(spec, rngs)


def test_a_model_that_makes_arrays_while_it_is_described_is_caught(kit_around):
    kit = kit_around(OnImages, Greedy())
    with pytest.raises(AssertionError, match="arrays were made"):
        kit.test_it_is_described_without_memory()


@dataclasses.dataclass(frozen=True)
class Rematerialised:
    remat: Literal["none", "full"] = "none"

    def build(self, spec, rngs):
        net = Net("", spec, rngs)
        if self.remat == "full":
            net.head[...] = net.head[...] * 1.01
        return net


def test_rematerialisation_that_changes_gradients_is_caught(kit_around):
    kit = kit_around(OnImages, Rematerialised())
    with pytest.raises(AssertionError, match="gradients with remat='none' and 'full' differ"):
        kit.test_rematerialisation_changes_nothing()


def test_a_checkpoint_that_loses_a_bit_is_caught(kit_around, monkeypatch):
    # Orbax keeps whatever a model has, so the mistake is planted in the core.
    restore = Checkpoints.restore
    nudged = lambda self, step, wanted: jax.tree.map(lambda x: jnp.nextafter(x, 9.0), restore(self, step, wanted))
    monkeypatch.setattr(Checkpoints, "restore", nudged)
    with pytest.raises(AssertionError, match="the restored arrays differ"):
        kit_around(OnImages, Flawed()).test_a_checkpoint_restores_every_bit()


class TestThroughPytest(OnImages):
    """The door that authors use."""
