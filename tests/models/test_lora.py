"""LoRA: begins as the base model, trains and keeps adapters alone, and merges into plain parameters."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay import config, registry
from assay.checkpoint.checkpoints import Checkpoints, dotted
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.imported import Imported, write
from assay.network import Frozen, make_network
from assay.plan.plan import make_plan
from assay.testing.model import ModelKit
from assay.train.launch import resume, start
from assay_plugins.models.lora import LoRA
from assay_plugins.models.pretrained import Pretrained
from assay_plugins.models.resnet import ResNet
from assay_plugins.models.transformer import Transformer

ROW = ArraySpec((12,), "int32")
TEXT = DataSpec({"inputs": ROW, "targets": ROW}, vocab_size=16)
IMAGES = DataSpec({"image": ArraySpec((8, 8, 1), "float32")}, num_classes=10)
BASE = Transformer(layers=2, width=16, heads=4, kv_heads=2)
MODEL = LoRA(model=BASE, rank=3, alpha=5.0, targets=("query", "attention/out", "blocks/1/mlp/up"))
ADAPTED = {
    "blocks/0/attention/query",
    "blocks/1/attention/query",
    "blocks/0/attention/out",
    "blocks/1/attention/out",
    "blocks/1/mlp/up",
}


class TestLoRA(ModelKit):
    def plugin(self) -> LoRA:
        return LoRA(model=Transformer(layers=1, width=16, heads=4), rank=3, targets=("query", "mlp/up"))


@pytest.fixture(scope="module")
def network():
    return make_network(MODEL, TEXT)


@pytest.fixture(scope="module")
def variables(network):
    """(params, frozen) with adapters that change something."""
    params, _ = network.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), params)
    return moved, network.init_frozen(jax.random.key(0))


def tokens() -> dict[str, jax.Array]:
    return {"inputs": jax.random.randint(jax.random.key(5), (2, 12), 0, 16)}


def logits_of(network: Any, params: Any, frozen: Any) -> jax.Array:
    call = jax.jit(lambda p, f: network.merge(p, {}, frozen=f)(tokens(), train=False, rngs=None))
    return call(params, frozen)


def slashed(tree: Any) -> dict[str, Any]:
    return {path.replace(".", "/"): leaf for path, leaf in dotted(tree).items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = value
    return tree


def test_it_begins_as_the_base_exactly(network) -> None:
    params, _ = network.init(jax.random.key(3))
    frozen = network.init_frozen(jax.random.key(3))
    plain = make_network(BASE, TEXT)
    jax.tree.map(np.testing.assert_array_equal, frozen["base"], plain.init(jax.random.key(3))[0])
    np.testing.assert_array_equal(logits_of(network, params, frozen), logits_of(plain, frozen["base"], {}))


def test_the_targets_have_adapters_and_all_else_is_frozen(network) -> None:
    assert {path.rsplit("/", 1)[0] for path in slashed(network.params)} == {f"adapters/{name}" for name in ADAPTED}
    shapes = {path: leaf.shape for path, leaf in slashed(network.params).items()}
    assert shapes["adapters/blocks/0/attention/query/a"] == (16, 3)
    assert shapes["adapters/blocks/0/attention/query/b"] == (3, 4, 4)
    assert shapes["adapters/blocks/0/attention/out/a"] == (4, 4, 3)
    assert shapes["adapters/blocks/0/attention/out/b"] == (3, 16)
    axes = network.axes["adapters"]["blocks"]["0"]["attention"]["out"]
    assert axes == {"a": ("heads", "head_dim", None), "b": (None, "embed")}
    plain = make_network(BASE, TEXT)
    assert jax.tree.structure(network.frozen["base"]) == jax.tree.structure(plain.params)
    assert network.frozen_axes["base"] == plain.axes
    assert network.parameter_count == sum(3 * n for n in (2 * (16 + 16), 2 * (16 + 16), 16 + 64))


def test_the_change_is_that_of_the_paper(network, variables) -> None:
    params, frozen = variables
    merged = MODEL.merged({**slashed(params), **slashed(frozen)})
    for name, value in merged.items():
        base = np.asarray(slashed(frozen["base"])[name], np.float64)
        if name.removesuffix("/kernel") in ADAPTED:
            a, b = (
                np.asarray(slashed(params)[f"adapters/{name.removesuffix('/kernel')}/{x}"], np.float64) for x in "ab"
            )
            base = base + 5.0 / 3 * np.tensordot(a, b, axes=1)
        np.testing.assert_allclose(value, base, rtol=1e-5, atol=1e-6)


def test_merged_weights_give_the_same_logits(network, variables) -> None:
    params, frozen = variables
    merged = nested(MODEL.merged({**slashed(params), **slashed(frozen)}))
    plain = make_network(BASE, TEXT)
    ours = logits_of(network, params, frozen)
    assert np.abs(ours - logits_of(plain, frozen["base"], {})).max() > 0.05
    np.testing.assert_allclose(ours, logits_of(plain, merged, {}), atol=1e-6)


def test_decoding_uses_the_adapters(network, variables) -> None:
    params, frozen = variables
    module = network.merge(params, {}, frozen=frozen)
    inputs = tokens()["inputs"]
    logits, _ = module.decode(inputs, module.init_cache(2, 12, jnp.float32), 0)
    np.testing.assert_allclose(logits, logits_of(network, params, frozen), rtol=1e-4, atol=1e-5)
    assert not hasattr(
        LoRA(model=ResNet(widths=(8,), blocks=(1,)), targets=("head",)).build(IMAGES, nnx.Rngs(0)), "decode"
    )


def test_a_call_leaves_the_base_as_it_is_but_for_statistics() -> None:
    module = LoRA(model=ResNet(widths=(8,), blocks=(1,)), targets=("head",)).build(IMAGES, nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(module))
    module({"image": jax.random.normal(jax.random.key(0), (4, 8, 8, 1))}, train=True, rngs=nnx.Rngs(0))
    was, now = dict(nnx.to_flat_state(before)), dict(nnx.to_flat_state(nnx.state(module)))
    moved = {path for path in was if not np.array_equal(was[path][...], now[path][...])}
    assert moved
    assert all(isinstance(was[path], nnx.BatchStat) for path in moved)
    assert sum(isinstance(variable, Frozen) for variable in was.values()) > 3


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ("queri",),
            "no kernel of the model is called 'queri'; there are down, gate, head, key, out, query, up, value",
        ),
        (("attention",), "no kernel of the model is called 'attention'"),
    ],
)
def test_targets_that_there_are_not(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_network(LoRA(model=BASE, targets=targets), TEXT)


def test_kernels_that_are_no_linear_map_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stem has a kernel of shape \(3, 3, 1, 8\), which is no linear map"):
        make_network(LoRA(model=ResNet(widths=(8,), blocks=(1,)), targets=("stem",)), IMAGES)


def test_gpt2_has_few_adapters() -> None:
    # The paper's count (section 4.2): 2 rank (inputs + outputs) for queries and values of each of 12 layers, both 768 wide.
    gpt2 = Transformer(layers=12, width=768, heads=12)
    spec = DataSpec({"inputs": ROW}, vocab_size=50257)
    assert make_network(LoRA(model=gpt2, rank=8), spec).parameter_count == 12 * 2 * 8 * (768 + 768) == 294_912


@pytest.mark.parametrize("fields", [{"rank": 0}, {"alpha": 0.0}, {"targets": ()}])
def test_settings_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|name at least"):
        LoRA(model=BASE, **fields)


EXPERIMENT = """
experiment.model = @model.lora()
model.lora.model = @model.pretrained()
model.lora.rank = 2
model.pretrained.model = @model.mlp()
model.pretrained.path = {path!r}
model.lora.targets = ['layers/0', 'layers/1']
model.mlp.hidden = [16, 16]
experiment.dataset = @dataset.digits()
experiment.objective = @objective.classification()
experiment.metrics = [@metric.accuracy()]
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-2
experiment.parallelism = @parallelism.fsdp()
parallelism.fsdp.fsdp = {fsdp}
experiment.trackers = []
experiment.steps = {steps}
experiment.batch_size = 32
experiment.checkpoint_every = 4
"""


@pytest.fixture
def imported_mlp(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"layers/0": (64, 16), "layers/1": (16, 16), "head": (16, 10)}
    arrays = {f"{n}/kernel": rng.normal(size=s).astype(np.float32) / s[0] ** 0.5 for n, s in shapes.items()}
    arrays |= {f"{n}/bias": 0.1 * rng.normal(size=s[1]).astype(np.float32) for n, s in shapes.items()}
    write(Imported("experiment.model = @model.mlp()\nmodel.mlp.hidden = [16, 16]", arrays), tmp_path / "mlp", origin={})
    return tmp_path / "mlp"


@pytest.fixture(autouse=True)
def plugins():
    with registry.temporary("model", "lora", LoRA), registry.temporary("model", "pretrained", Pretrained):
        yield


def loaded(path: Path, steps: int = 8, fsdp: int = 8) -> config.Loaded:
    return config.load_text(EXPERIMENT.format(path=str(path), steps=steps, fsdp=fsdp), "lora.gin")


@pytest.mark.slow
def test_a_run_on_eight_devices_keeps_adapters_alone_and_can_be_resumed(imported_mlp: Path, tmp_path: Path) -> None:
    whole = start(loaded(imported_mlp), tmp_path / "whole")
    half = start(loaded(imported_mlp, steps=4), tmp_path / "half")
    text = (half.run.path / "config.gin").read_text()
    assert text.count("experiment.steps = 4") == 1
    half.run.write("config.gin", text.replace("experiment.steps = 4", "experiment.steps = 8"))
    half.run.update(steps=8)
    resumed = resume(half.run)
    assert resumed.step == 8
    assert resumed.values == whole.values
    checkpoints = Checkpoints(whole.run.checkpoints, read_only=True)
    saved = set(checkpoints._manager.item_metadata(8)["state"].tree)
    checkpoints.close()
    arrays = {name for name in saved if "adapters" in name}
    assert {name.split(".")[0] for name in arrays} == {"params", "optimizer"}
    assert not [name for name in saved if "base" in name]
    # The run's parameters, adapters merged, are the beginning of another model without adapters.
    plain = Pretrained(model=loaded(imported_mlp).experiment.model.model.model, path=str(whole.run.path))
    values = plain.initial_values(loaded(imported_mlp).experiment.dataset.spec())
    before = dict(loaded(imported_mlp).experiment.model.initial_values(loaded(imported_mlp).experiment.dataset.spec()))
    moved = {name for name, value in values.items() if not np.array_equal(value, before[f"base/{name}"])}
    assert moved == {"layers/0/kernel", "layers/1/kernel"}


def test_gradients_and_optimizer_state_are_of_the_adapters(imported_mlp: Path) -> None:
    plan = make_plan(loaded(imported_mlp).experiment)
    names = {path for path, leaf in dotted(plan.abstract.optimizer).items() if leaf.ndim}
    assert names
    assert all("adapters" in name for name in names)
    assert set(slashed(plan.abstract.params)) == {f"adapters/layers/{i}/{x}" for i in (0, 1) for x in "ab"}
    assert plan.shardings.frozen["base"]["layers"]["0"]["kernel"].spec != jax.sharding.PartitionSpec()
