"""The image models against published sizes and numpy implementations of their equations."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.kinds import Model
from assay.network import Network, make_network
from assay_plugins.models.mlp import MLP
from assay_plugins.models.resnet import ResNet
from assay_plugins.models.vit import ViT

STAGES = (64, 128, 256, 512)
SMALL: dict[str, Model] = {
    "vit": ViT(patch=2, width=16, layers=2, heads=4),
    "vit_mean": ViT(patch=2, width=16, layers=1, heads=2, mlp_width=24, pooling="mean"),
    "resnet": ResNet(widths=[4, 8], blocks=[1, 1]),
    "resnet_bottleneck": ResNet(widths=[4, 8], blocks=[1, 1], block="bottleneck", norm="group", stem="large"),
    "mlp": MLP(hidden=[12, 8]),
    "mlp_gelu": MLP(hidden=[], activation="gelu"),
}


def image_spec(side: int = 8, channels: int = 1, classes: int = 5) -> DataSpec:
    shape = (side, side, channels)
    return DataSpec({"image": ArraySpec(shape, "float32"), "label": ArraySpec((), "int32")}, num_classes=classes)


def images(rows: int = 3, side: int = 8, channels: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(5), (rows, side, side, channels))


def network_of(model: Model) -> tuple[Network, Any, Any]:
    """The network, and parameters drawn with enough spread that every one of them matters."""
    network = make_network(model, image_spec())
    leaves, tree = jax.tree.flatten(network.params)
    rng = np.random.default_rng(0)
    params = tree.unflatten([jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype) for x in leaves])
    # An average begins at 0, a variance at 1.
    stats = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full(x.shape, path[-1].key == "var", x.dtype), network.stats
    )
    return network, params, stats


def logits_of(network: Network, params: Any, stats: Any, image: jax.Array) -> np.ndarray:
    call = jax.jit(lambda p, s, x: network.merge(p, s)({"image": x}, train=False, rngs=None))
    return np.asarray(call(params, stats, image))


def called(
    network: Network, params: Any, stats: Any, *, train: bool, seed: int | None = None
) -> tuple[np.ndarray, Any]:
    """(logits, statistics afterwards)."""

    def call(params: Any, stats: Any, key: Any) -> tuple[jax.Array, Any]:
        module = network.merge(params, stats)
        logits = module({"image": images()}, train=train, rngs=None if key is None else nnx.Rngs(key))
        return logits, network.stats_of(module)

    logits, after = jax.jit(call)(params, stats, None if seed is None else jax.random.key(seed))
    return np.asarray(logits), after


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (ViT(patch=16, width=768, layers=12, heads=12), 86_567_656),
        (ResNet(widths=STAGES, blocks=(2, 2, 2, 2), stem="large"), 11_689_512),
        (ResNet(widths=STAGES, blocks=(3, 4, 6, 3), stem="large", block="bottleneck"), 25_557_032),
    ],
    ids=["vit_b16", "resnet18", "resnet50"],
)
def test_published_sizes(model: Model, count: int) -> None:
    assert make_network(model, image_spec(224, 3, 1000)).parameter_count == count


@pytest.mark.parametrize("name", SMALL)
def test_training_in_both_dtypes(name: str) -> None:
    network, params, stats = network_of(SMALL[name])
    params = jax.tree.map(lambda x: x / 4, params)

    def loss(params: Any, dtype: str) -> tuple[jax.Array, jax.Array]:
        module = network.merge(params, stats, dtype)
        logits = module({"image": images()}, train=True, rngs=None)
        return jnp.sum(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)), logits

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (gradients, near), (_, exact) = gradient(params, "bfloat16"), gradient(params, "float32")
    assert (near.shape, near.dtype, exact.dtype) == ((3, 5), jnp.bfloat16, jnp.float32)
    assert float(jnp.abs(near - exact).max()) < 0.05 * max(1.0, float(jnp.abs(exact).max()))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ["vit", "vit_mean"])
def test_vit_equals_the_equations(name: str) -> None:
    model = SMALL[name]
    assert isinstance(model, ViT)
    network, params, stats = network_of(model)
    expected = vit_reference(model, jax.tree.map(np.float64, params), np.asarray(images(), np.float64))
    np.testing.assert_allclose(logits_of(network, params, stats, images()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "resnet_bottleneck"])
def test_resnet_equals_the_equations(name: str) -> None:
    model = SMALL[name]
    assert isinstance(model, ResNet)
    network, params, stats = network_of(model)
    moved = jax.tree.map(lambda x: x + 0.3, stats)
    expected = resnet_reference(model, *jax.tree.map(np.float64, (params, moved)), np.asarray(images(), np.float64))
    np.testing.assert_allclose(logits_of(network, params, moved, images()), expected, rtol=1e-4, atol=1e-4)


def test_mlp_equals_the_equations() -> None:
    network, params, stats = network_of(SMALL["mlp"])
    params = jax.device_get(params)
    x = np.asarray(images()).reshape(3, -1)
    for layer in ("0", "1"):
        x = np.maximum(x @ params["layers"][layer]["kernel"] + params["layers"][layer]["bias"], 0)
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits_of(network, params, stats, images()), expected, rtol=1e-5, atol=1e-5)


def test_axes_alternate_through_the_mlp() -> None:
    axes = make_network(MLP(hidden=[12, 8]), image_spec()).axes
    kernels = [axes["layers"]["0"]["kernel"], axes["layers"]["1"]["kernel"], axes["head"]["kernel"]]
    assert kernels == [("features", "mlp"), ("mlp", "features"), ("features", "classes")]


def test_batch_statistics_move_in_training_only() -> None:
    network, params, stats = network_of(SMALL["resnet"])
    _, kept = called(network, params, stats, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept, stats)
    logits, moved = called(network, params, stats, train=True)
    stem = convolved(np.asarray(images(), np.float64), np.asarray(params["stem"]["kernel"], np.float64), 1)
    np.testing.assert_allclose(moved["stem_norm"]["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["stem_norm"]["var"], 0.9 + 0.1 * stem.var((0, 1, 2), ddof=1), rtol=1e-4)
    # Training takes the batch's own statistics, whatever the averages are.
    np.testing.assert_array_equal(logits, called(network, params, moved, train=True)[0])


def test_residual_branches_start_at_nothing() -> None:
    network, _, stats = network_of(SMALL["resnet"])
    params, first = jax.jit(network.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, stats)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, network.params)
    block = params["stages"]["1"]["0"]
    assert not np.any(block["norm2"]["scale"])
    assert np.all(block["norm1"]["scale"] == 1)
    assert np.std(block["conv2"]["kernel"]) == pytest.approx(math.sqrt(2 / (9 * 8)), rel=0.15)


@pytest.mark.parametrize(
    "model", [ViT(patch=2, width=16, layers=1, heads=2, dropout=0.5), MLP(hidden=[64], dropout=0.5)]
)
def test_dropout_happens_in_training_only(model: Model) -> None:
    network, params, stats = network_of(model)
    first, again, other = (called(network, params, stats, train=True, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    still, plain = (called(network, params, stats, train=False, seed=seed)[0] for seed in (0, None))
    np.testing.assert_array_equal(still, plain)
    assert np.abs(first - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViT(patch=2, width=16, layers=1, heads=3), "heads = 3: must divide width = 16"),
        (lambda: ViT(patch=0, width=16, layers=1, heads=4), "patch = 0: must be at least 1"),
        (
            lambda: ViT(patch=3, width=16, layers=1, heads=4).build(image_spec(), nnx.Rngs(0)),
            "patch = 3: must divide the image's height = 8",
        ),
        (
            lambda: ResNet(widths=[8], blocks=[1, 1]),
            r"blocks = \[1, 1\]: must have one number for each of widths = \[8\]",
        ),
        (lambda: ResNet(widths=[8], blocks=[0]), "blocks = 0: must be at least 1"),
        (lambda: MLP(hidden=[8, 0]), "hidden = 0: must be at least 1"),
        (lambda: MLP(dropout=1.5), r"dropout = 1\.5: must be at least 0 and less than 1"),
    ],
)
def test_bad_sizes(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["vit", "resnet", "mlp"])
def test_data_without_images(name: str) -> None:
    text = DataSpec({"inputs": ArraySpec((8,), "int32")}, vocab_size=65)
    with pytest.raises(
        ConfigError, match=rf"model\.{name} needs a dataset with .*images.* this one has inputs \(8,\), vocab_size 65"
    ):
        SMALL[name].build(text, nnx.Rngs(0))


def vit_reference(model: ViT, params: Any, image: np.ndarray) -> np.ndarray:
    """In float64 numpy, with a loop over patches and heads."""
    side, count = model.patch, image.shape[1] // model.patch
    patches = [
        image[:, i * side : (i + 1) * side, j * side : (j + 1) * side].reshape(len(image), -1)
        for i in range(count)
        for j in range(count)
    ]
    x = np.stack(patches, axis=1) @ params["patches"]["kernel"] + params["patches"]["bias"]
    if model.pooling == "cls":
        x = np.concatenate([np.tile(params["cls"], (len(image), 1, 1)), x], axis=1)
    x = x + params["positions"]
    for i in range(model.layers):
        p = params["blocks"][str(i)]
        y = normalised(x, p["attention_norm"])
        for head in range(model.heads):
            q, k, v = (
                y @ p["attention"][n]["kernel"][:, head] + p["attention"][n]["bias"][head]
                for n in ("query", "key", "value")
            )
            weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
            x = x + weights / weights.sum(-1, keepdims=True) @ v @ p["attention"]["out"]["kernel"][head]
        x = x + p["attention"]["out"]["bias"]
        hidden = normalised(x, p["mlp_norm"]) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
        x = x + hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    x = normalised(x, params["norm"])
    return (x[:, 0] if model.pooling == "cls" else x.mean(1)) @ params["head"]["kernel"] + params["head"]["bias"]


def normalised(x: np.ndarray, p: Any) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def resnet_reference(model: ResNet, params: Any, stats: Any, image: np.ndarray) -> np.ndarray:
    """In float64 numpy, with running statistics where there are any."""

    def norm(p: Any, s: Any, x: np.ndarray) -> np.ndarray:
        if model.norm == "batch":
            return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
        groups = x.shape[-1]  # fewer than 32 channels: one each
        y = x.reshape(*x.shape[:3], groups, -1)
        y = (y - y.mean((1, 2, 4), keepdims=True)) / np.sqrt(y.var((1, 2, 4), keepdims=True) + 1e-5)
        return y.reshape(x.shape) * p["scale"] + p["bias"]

    large = model.stem == "large"
    x = convolved(image, params["stem"]["kernel"], 2 if large else 1)
    x = np.maximum(norm(params["stem_norm"], stats.get("stem_norm"), x), 0)
    if large:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        x = windows(padded, 3, 2).max((3, 4))
    for stage in range(len(model.widths)):
        for index in range(model.blocks[stage]):
            p = params["stages"][str(stage)][str(index)]
            s = stats.get("stages", {}).get(str(stage), {}).get(str(index), {})
            stride = 2 if stage and not index else 1
            strides = (1, stride, 1) if model.block == "bottleneck" else (stride, 1)
            y = x
            for n, step in enumerate(strides, start=1):
                y = norm(p[f"norm{n}"], s.get(f"norm{n}"), convolved(y, p[f"conv{n}"]["kernel"], step))
                y = np.maximum(y, 0) if n < len(strides) else y
            if "shortcut" in p:
                x = convolved(x, p["shortcut"]["conv"]["kernel"], stride)
                x = norm(p["shortcut"]["norm"], s.get("shortcut", {}).get("norm"), x)
            x = np.maximum(x + y, 0)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return np.einsum("bijhwc,hwco->bijo", windows(padded, size, stride), kernel)


def windows(padded: np.ndarray, size: int, stride: int) -> np.ndarray:
    """(batch, rows, columns, size, size, channels)."""
    found = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.moveaxis(found, 3, -1)
