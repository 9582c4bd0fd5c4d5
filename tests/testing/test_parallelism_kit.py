"""The conformance kit of parallelism plugins: the shipped ones pass it, and each check catches the mistake that it is for.

A layout is two answers, from which the core makes everything else; so some of the mistakes are planted in the core.
"""

import dataclasses
import itertools
import unittest

import jax
import numpy as np
import pytest

from assay.errors import LayoutError
from assay.experiment import Experiment
from assay.plan import plan as plan_module
from assay.plan.plan import Plan
from assay.testing import parallelism as parallelism_kit
from assay.testing.kit import run
from assay.testing.parallelism import ParallelismKit
from assay_plugins.datasets.digits import Digits
from assay_plugins.models.mlp import MLP
from assay_plugins.objectives.classification import Classification
from assay_plugins.optimizers.adamw import AdamW
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.parallelism.fsdp import FSDP
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
from assay_plugins.parallelism.tensor import Tensor

SHIPPED = {
    "data_parallel": DataParallel(),
    "fsdp": FSDP(),
    "tensor": Tensor(),
    "fsdp_tensor": FSDPTensor(data=2, fsdp=2, tensor=2),
}
MESH = "test_the_mesh_fits_the_devices"
RULES = "test_rules_are_about_axes_that_there_are"
PLACED = "test_every_logical_axis_can_be_placed"
TRAINING = "test_training_is_that_of_one_device"
BYTES = "test_bytes_per_device_are_as_promised"
CHECKPOINTS = "test_checkpoints_go_to_other_layouts_and_back"
ONE = "test_one_device_is_enough_or_the_refusal_says_why"
QUICK = (MESH, RULES, PLACED)  # which compile nothing


def kit_of(parallelism, **declared):
    return type("Found", (ParallelismKit,), {"plugin": lambda self: parallelism, **declared})()


def fails(kit, name):
    try:
        getattr(kit, name)()
    except (Exception, unittest.SkipTest) as error:
        return not isinstance(error, unittest.SkipTest)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_layouts_pass(name):
    assert [(r.name, r.status, r.detail) for r in run(kit_of(SHIPPED[name])) if r.status != "passed"] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_layouts_pass_what_is_quick(name):
    for check in QUICK:
        getattr(kit_of(SHIPPED[name]), check)()


COUNT = itertools.count()


@dataclasses.dataclass(frozen=True)
class Flawed:
    """Sharded data parallelism, and a place for one mistake."""

    flaw: str = ""

    def mesh_axes(self):
        match self.flaw:
            case "too large":
                return {"d": 2 * len(jax.devices())}
            case "a float":
                return {"d": 8.0}
            case "another mesh each time":
                return {"d": 2 ** (next(COUNT) % 3)}
            case "an idle mesh axis":
                return {"d": -1, "spare": 2}
            case "counts":
                return {"d": jax.device_count() // (jax.device_count() // 2)}
            case "no words" if jax.device_count() == 1:
                raise LayoutError("")
        return {"d": -1}

    def rules(self):
        rules = {"batch": ("d",), "embed": ("d",)}
        match self.flaw:
            case "a string":
                return {"batch": "d"}
            case "no such mesh axis":
                return rules | {"mlp": ("t",)}
            case "a misspelt axis":
                return rules | {"embde": ("d",)}
            case "other rules each time":
                return rules | {"classes": ("d",) * (next(COUNT) % 2)}
            case "an axis twice":
                return rules | {"conv_out": ("d", "d")}
            case "two dimensions":
                return rules | {"act_mlp": ("d",)}
        return rules


MUTATIONS = {
    "": set(),
    "too large": {*QUICK},
    "a float": {*QUICK},
    "another mesh each time": {MESH},
    "no such mesh axis": {*QUICK},
    "a string": {RULES},
    "a misspelt axis": {RULES},
    "an idle mesh axis": {RULES},
    "other rules each time": {RULES},
    "an axis twice": {PLACED},
    "two dimensions": {TRAINING},
    "counts": {ONE},
    "no words": {ONE},
}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_checks(flaw):
    kit = kit_of(Flawed(flaw))
    checks = [name for name in kit.checks() if name in QUICK or name in MUTATIONS[flaw]]
    assert {name for name in checks if fails(kit, name)} == MUTATIONS[flaw]


def test_axes_of_ones_own_are_declared():
    own = type("Own", (Flawed,), {"rules": lambda self: {"batch": ("d",), "experts": ("d",)}})()
    assert fails(kit_of(own), RULES)
    getattr(kit_of(own, axes=frozenset({"experts"})), RULES)()


def test_one_device_may_be_refused_with_words():
    getattr(kit_of(FSDPTensor(fsdp=2, tensor=2)), ONE)()


@pytest.mark.parametrize(("off", "caught"), [(2e-5, True), (5e-6, False)])
def test_gradients_that_differ_are_told_from_rounding(off, caught, monkeypatch):
    def trained(plan):
        return {
            "loss": np.array([4.0, 3.0]),
            "gradients.up": np.array([0.0, 8.0 * (1 + off * (plan.device_count > 1))]),
        }

    monkeypatch.setattr(parallelism_kit, "_trained", trained)
    assert fails(kit_of(DataParallel()), TRAINING) == caught


def test_a_process_with_one_device_skips_what_needs_several(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    with pytest.raises(unittest.SkipTest, match="there is one device; set XLA_FLAGS"):
        getattr(kit_of(FSDP()), MESH)()


def partial_sums(make_step):
    """A step whose gradients are a little off wherever there are several devices."""

    def make(experiment, network, optimizer, layout):
        step = make_step(experiment, network, optimizer, layout)

        def off(state, batch):
            new, metrics = step(state, batch)
            scale = 1.0 if layout.mesh.size == 1 else 1.001
            return dataclasses.replace(new, params=jax.tree.map(lambda p: p * scale, new.params)), metrics

        return off

    return make


def whole(shardings_of):
    """Shardings under which every device holds everything."""
    return lambda layout, network, abstract: jax.tree.map(
        lambda _: layout.replicated, shardings_of(layout, network, abstract)
    )


def promising_half(bytes_per_device):
    return lambda self: {name: n // 2 for name, n in bytes_per_device(self).items()}


def rounding(restored):
    """Restoring that keeps 16 bits of each float."""

    def restore(plan, checkpoints, step):
        state = restored(plan, checkpoints, step)
        return dataclasses.replace(
            state, params=jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), state.params)
        )

    return restore


PLANTED = {
    "partial sums": (plan_module, "make_step", partial_sums, TRAINING),
    "nothing is divided": (plan_module, "shardings_of", whole, BYTES),
    "half is promised": (Plan, "bytes_per_device", promising_half, BYTES),
    "restoring rounds": (parallelism_kit, "restored", rounding, CHECKPOINTS),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_mistake_in_the_core_is_caught(bug, monkeypatch):
    owner, name, plant, check = PLANTED[bug]
    kit = kit_of(FSDP())
    monkeypatch.setattr(owner, name, plant(getattr(owner, name)))
    with pytest.raises(AssertionError):
        getattr(kit, check)()


def test_every_check_has_a_mutation():
    planted = {check for *_, check in PLANTED.values()}
    assert set(ParallelismKit.checks()) == planted.union(*MUTATIONS.values())


@pytest.mark.slow
def test_an_experiments_own_parts_are_trained():
    experiment = Experiment(
        model=MLP(hidden=(16,)),
        dataset=Digits(),
        objective=Classification(),
        optimizer=AdamW(learning_rate=1e-3),
        parallelism=FSDP(),
        trackers=(),
        steps=10,
        batch_size=16,
        compute_dtype="bfloat16",
    )
    kit = kit_of(FSDP(), experiment=experiment)
    assert isinstance(kit.training(Tensor()).model, MLP)
    for check in (TRAINING, BYTES):
        getattr(kit, check)()
