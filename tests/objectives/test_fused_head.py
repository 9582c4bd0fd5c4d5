"""next_token with its head and loss together: the same values, gradients and training as by way of the logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.experiment import Experiment
from assay.network import make_network
from assay.plan.plan import make_plan
from assay.train import begin
from assay.train.step import make_inspected_step
from assay_kernels import recording
from assay_kernels.linear_cross_entropy import shapes, vjp
from assay_plugins.datasets.arithmetic import Arithmetic
from assay_plugins.models.heads import LinearHead
from assay_plugins.models.lora import LoRA
from assay_plugins.models.mamba2 import Mamba2
from assay_plugins.models.transformer import Transformer
from assay_plugins.objectives.next_token import NextToken
from assay_plugins.optimizers.adamw import AdamW
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
from assay_plugins.schedules.constant import Constant

VOCAB, ROWS, SEQ = 11, 4, 12
TRANSFORMER = Transformer(layers=1, width=16, heads=4)
MODELS = {
    "transformer": TRANSFORMER,
    "tied": dataclasses.replace(TRANSFORMER, tied_head=True),
    "padded": dataclasses.replace(TRANSFORMER, vocab_multiple=8, dropout=0.1),
    "mamba2": Mamba2(layers=1, width=16, heads=4, vocab_multiple=8),
}
OBJECTIVES = {"plain": NextToken(), "every term": NextToken(z_loss=1e-2, label_smoothing=0.1)}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    monkeypatch.setitem(shapes.CHUNK, "cpu", (1, 16))


def batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    targets = rng.integers(-1, VOCAB, (ROWS, SEQ))
    inputs = rng.integers(0, VOCAB, (ROWS, SEQ))
    return {
        "inputs": jnp.asarray(inputs, jnp.int32),
        "targets": jnp.asarray(targets, jnp.int32),
        "mask": jnp.arange(ROWS) < ROWS - 1,
    }


def trained(model: Any, objective: NextToken) -> tuple[Any, Any]:
    """(outcome of training, gradient of its total)."""
    row = ArraySpec((SEQ,), "int32")
    network = make_network(model, DataSpec({"inputs": row, "targets": row}, vocab_size=VOCAB))
    params, stats = jax.jit(network.init)(jax.random.key(0))

    def total(params: Any) -> Any:
        module = network.merge(params, stats)
        outcome = objective(module, batch(), train=True, rngs=nnx.Rngs(1)).masked(batch()["mask"])
        return outcome.total()[0], outcome

    gradients, outcome = jax.jit(jax.grad(total, has_aux=True))(params)
    return outcome, gradients


@pytest.mark.parametrize(("name", "terms"), [("transformer", "plain"), *((name, "every term") for name in MODELS)])
def test_values_and_gradients_are_those_of_the_logits(name: str, terms: str) -> None:
    objective = OBJECTIVES[terms]
    with recording() as choices:
        found, gradients = trained(MODELS[name], dataclasses.replace(objective, fused_head="auto"))
    expected, expected_gradients = trained(MODELS[name], objective)
    assert [c.op for c in choices].count("linear_cross_entropy") == 1
    assert found.logits is None
    np.testing.assert_array_equal(found.weights, expected.weights)
    counted = np.asarray(found.weights) > 0
    np.testing.assert_allclose(np.asarray(found.losses)[counted], np.asarray(expected.losses)[counted], rtol=3e-6)
    assert found.scalars.keys() == expected.scalars.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dict(found.scalars), dict(expected.scalars))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), gradients, expected_gradients)


def test_the_cores_weights_are_the_announced_ones(monkeypatch) -> None:
    """So that logits are never computed again in training, rows that only pad included."""
    monkeypatch.setattr(vjp, "_gradients", lambda plan, x, w, *rest: (x * jnp.nan, w * jnp.nan))
    _, gradients = trained(TRANSFORMER, NextToken(z_loss=1e-2, label_smoothing=0.1, fused_head="auto"))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_evaluation_has_its_logits() -> None:
    network = make_network(TRANSFORMER, Arithmetic().spec())
    module = network.merge(*jax.jit(network.init)(jax.random.key(0)))
    examples = {k: jnp.asarray(v) for k, v in Arithmetic().source("train").gather(np.arange(3)).items()}
    outcomes = [NextToken(fused_head=f)(module, examples, train=False, rngs=None) for f in (None, "auto")]
    np.testing.assert_array_equal(outcomes[0].logits, outcomes[1].logits)
    np.testing.assert_array_equal(outcomes[0].losses, outcomes[1].losses)


def test_a_network_without_a_linear_head_is_refused() -> None:
    adapted = LoRA(model=TRANSFORMER).build(Arithmetic().spec(), nnx.Rngs(0))
    assert not isinstance(adapted, LinearHead)
    with pytest.raises(ConfigError, match=r"fused_head = 'auto': the network, AdaptedDecoder, does not offer `hidden`"):
        NextToken(fused_head="auto")(adapted, batch(), train=True, rngs=None)


def test_an_implementation_that_there_is_not_is_refused_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"fused_head = 'fast': must be None, 'auto' or one of chunked, blocked, reference"
    ):
        NextToken(fused_head="fast")


@pytest.mark.parametrize(
    ("impl", "parallelism"),
    [("auto", DataParallel()), ("auto", FSDPTensor(data=2, fsdp=2)), ("blocked", FSDPTensor(data=2, fsdp=2))],
    ids=["data", "fsdp_tensor", "blocked"],
)
def test_eight_devices_and_accumulation_train_the_same(impl: str, parallelism: Any) -> None:
    """One update with the fused head, of a batch in two parts on eight devices, against one device by way of the logits."""
    found = []
    for fused, where, parts in ((None, DataParallel(), 1), (impl, parallelism, 2)):
        experiment = Experiment(
            model=Transformer(layers=1, width=32, heads=8, vocab_multiple=8),
            dataset=Arithmetic(),
            objective=NextToken(z_loss=1e-3, fused_head=fused),
            optimizer=AdamW(learning_rate=Constant(peak=1e-2)),
            parallelism=where,
            steps=10,
            batch_size=16,
            accumulation=parts,
        )
        devices = jax.devices() if fused else jax.devices()[:1]
        found.append(updated(experiment, devices))
    (loss, gradients), (expected_loss, expected) = found[1], found[0]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, expected)


def updated(experiment: Any, devices: Any) -> tuple[Any, Any]:
    plan = make_plan(experiment, devices=devices)
    step = make_inspected_step(experiment, plan.network, plan.optimizer, plan.layout)
    rows = experiment.dataset.source("train").gather(np.arange(experiment.batch_size))
    rows = {k: jax.device_put(v, plan.layout.batch(v.ndim)) for k, v in rows.items()}
    rows["mask"] = jax.device_put(np.ones(experiment.batch_size, bool), plan.layout.batch(1))
    _, metrics, gradients, _ = jax.jit(step)(begin.drawn(plan), rows)
    return jax.device_get((metrics["loss"], gradients))
