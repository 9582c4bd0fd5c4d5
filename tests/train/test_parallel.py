"""One loss curve on any mesh, parameters that are really divided, and collectives that are really there."""

import functools

import jax
import numpy as np
import pytest

from assay.data.pipeline import train_batches
from assay.plan.plan import jitted, make_plan
from assay.train.feed import local_rows, stack, to_devices
from assay.train.state import initial_state
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.parallelism.fsdp import FSDP
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
from assay_plugins.parallelism.tensor import Tensor

MESHES = {
    "data 2": (2, DataParallel()),
    "data 8": (8, DataParallel()),
    "fsdp 4": (4, FSDP()),
    "fsdp 8": (8, FSDP()),
    "fsdp 2 x data 2": (4, FSDP(data=2)),
    "tensor 2": (2, Tensor()),
    "tensor 8": (8, Tensor()),
    "fsdp 2 x tensor 2": (4, FSDPTensor()),
    "data 2 x fsdp 2 x tensor 2": (8, FSDPTensor(data=2)),
}


def curve(experiment, count):
    """(losses, final state) of the experiment on the first `count` devices."""
    plan = make_plan(experiment, devices=jax.devices()[:count])
    draw = functools.partial(initial_state, experiment, plan.network, plan.optimizer)
    state = jax.jit(draw, out_shardings=plan.shardings)()
    rows = local_rows(plan.layout, experiment.batch_size)
    source = experiment.dataset.source("train")
    batches = train_batches(source, batch_size=experiment.batch_size, seed=0, rows=rows, prefetch=4, workers=0)
    dispatch, losses = jitted(plan, 10), []
    for _ in range(experiment.steps // 10):
        batch = to_devices(plan.layout, stack([next(batches) for _ in range(10)]), stacked=True)
        state, metrics = dispatch(state, batch)
        losses += np.asarray(metrics["loss"]).tolist()
    batches.close()
    return np.array(losses), state, plan


@pytest.fixture(scope="module")
def alone(request):
    return {}


@pytest.mark.parametrize("mesh", MESHES)
def test_the_same_curve_on_every_mesh(tiny, alone, mesh):
    if "losses" not in alone:
        alone["losses"] = curve(tiny(), 1)[0]
        assert alone["losses"][-1] < 0.7 * alone["losses"][0]
    count, strategy = MESHES[mesh]
    losses, state, plan = curve(tiny(parallelism=strategy), count)
    np.testing.assert_allclose(losses, alone["losses"], rtol=1e-5)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert held == plan.bytes_per_device()["state"]


def test_initial_parameters_are_the_same_bits_on_every_mesh(tiny):
    def drawn(strategy, count):
        plan = make_plan(tiny(parallelism=strategy), devices=jax.devices()[:count])
        draw = functools.partial(initial_state, plan.experiment, plan.network, plan.optimizer)
        return jax.device_get(jax.jit(draw, out_shardings=plan.shardings)().params)

    one = drawn(DataParallel(), 1)
    for count, strategy in MESHES.values():
        jax.tree.map(np.testing.assert_array_equal, one, drawn(strategy, count))


@pytest.mark.parametrize(
    ("strategy", "share", "collectives"),
    [
        (DataParallel(), 1.0, {"all-reduce"}),
        (FSDP(), 0.25, {"all-gather"}),
        (Tensor(), 0.30, {"all-reduce"}),
        (FSDPTensor(fsdp=2, tensor=2), 0.35, {"all-gather", "all-reduce"}),
    ],
)
def test_bytes_fall_and_collectives_are_there(tiny, strategy, share, collectives):
    one = make_plan(tiny(), devices=jax.devices()[:1]).bytes_per_device()
    plan = make_plan(tiny(parallelism=strategy), devices=jax.devices()[:4])
    for part in ("parameters", "optimizer"):
        assert plan.bytes_per_device()[part] <= 1.1 * share * one[part]
    text = plan.compiled().as_text()
    assert all(name in text for name in collectives)


def test_accumulation_is_the_whole_batch(tiny):
    whole, parts = curve(tiny(steps=10), 2)[0], curve(tiny(steps=10, accumulation=4), 2)[0]
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_bf16_compute_keeps_fp32_masters(tiny):
    losses, state, _ = curve(tiny(steps=10, compute_dtype="bfloat16"), 2)
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert losses[-1] < losses[0]


def test_the_moving_average_follows_its_formula(tiny):
    _, state, _ = curve(tiny(steps=10, ema_decay=0.5), 1)
    _, before, _ = curve(tiny(steps=10, ema_decay=0.999), 1)
    gap = jax.tree.map(lambda e, p: float(np.abs(e - p).max()), state.ema, state.params)
    slow = jax.tree.map(lambda e, p: float(np.abs(e - p).max()), before.ema, before.params)
    assert max(jax.tree.leaves(gap)) < max(jax.tree.leaves(slow))
