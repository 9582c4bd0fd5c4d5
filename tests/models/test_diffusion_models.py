"""The U-Net and the diffusion transformer: the kit's checks, published sizes, their equations in numpy, and what they say of wrong data."""

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
from assay.parallel.layout import make_layout, parameter_shardings
from assay.testing.examples import batch_of
from assay.testing.model import ModelKit
from assay_plugins.models.conditioning import noise_features
from assay_plugins.models.dit import DiT, sines
from assay_plugins.models.patches import image_of, patches_of
from assay_plugins.models.unet import UNet
from assay_plugins.parallelism.fsdp import FSDP
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
from assay_plugins.parallelism.tensor import Tensor

CLASSES = 8
SMALL: dict[str, Model] = {
    "unet": UNet(widths=[8, 16], blocks=1, heads=8),
    "dit": DiT(patch=4, width=16, layers=2, heads=8),
}


def noised_spec(side: int = 8, channels: int = 1, classes: int = CLASSES) -> DataSpec:
    arrays = {
        "image": ArraySpec((side, side, channels), "float32"),
        "noise_level": ArraySpec((), "float32"),
        "label": ArraySpec((), "int32"),
    }
    return DataSpec(arrays, num_classes=classes)


def batch_with_withheld_labels(size: int) -> dict[str, np.ndarray]:
    """Every third label is withheld, so that the row for none matters too."""
    batch = batch_of(noised_spec(), size)
    batch["label"][::3] = -1
    return batch


class NoisedKit(ModelKit):
    """The kit with noised images, and every class in its batch of eight, or none."""

    def spec(self) -> DataSpec:
        return noised_spec()

    def batch(self, size: int) -> dict[str, np.ndarray]:
        return batch_with_withheld_labels(size)


@pytest.mark.slow
class TestUNet(NoisedKit):
    def plugin(self) -> Model:
        return SMALL["unet"]


@pytest.mark.slow
class TestDiT(NoisedKit):
    def plugin(self) -> Model:
        return SMALL["dit"]


def state_of(model: Model) -> tuple[Network, Any, Any]:
    """The network, and parameters drawn with enough spread that every one of them matters."""
    network = make_network(model, noised_spec())
    leaves, tree = jax.tree.flatten(network.params)
    rng = np.random.default_rng(0)
    return network, tree.unflatten([jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves]), {}


def called(network: Network, params: Any, stats: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    shown = {k: jnp.asarray(v) for k, v in batch.items()}
    return np.asarray(jax.jit(lambda p, s, b: network.merge(p, s)(b, train=False, rngs=None))(params, stats, shown))


@pytest.mark.parametrize(
    ("width", "layers", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
    ids=["S", "B", "L", "XL"],
)
def test_the_diffusion_transformer_has_the_papers_sizes(width: int, layers: int, heads: int, millions: int) -> None:
    model = DiT(patch=2, width=width, layers=layers, heads=heads)
    assert make_network(model, noised_spec(32, 4, 1000)).parameter_count == pytest.approx(millions * 1e6, rel=0.01)


def test_the_unet_has_the_papers_size() -> None:
    widths = [128, 256, 256, 256]
    count = make_network(UNet(widths=widths, attention_levels=[1], heads=1), noised_spec(32, 3, 10)).parameter_count
    # Its blocks add the noise level; ours scale and shift by it, which takes a second map of 4 x 128 numbers to each block's channels.
    channels = sum(2 * w + 3 * w for w in widths) + 2 * widths[-1]
    assert count - 512 * channels == pytest.approx(35.7e6, rel=0.01)


@pytest.mark.parametrize("model", [UNet(widths=[8], blocks=1), DiT(patch=8, width=8, layers=1, heads=1)])
def test_a_new_network_returns_zeros(model: Model) -> None:
    network = make_network(model, noised_spec())
    params, stats = jax.jit(network.init)(jax.random.key(0))
    found = called(network, params, stats, batch_with_withheld_labels(3))
    assert found.shape == (3, 8, 8, 1)
    assert not found.any()


@pytest.mark.parametrize("name", SMALL)
def test_any_negative_label_is_the_last_row_and_noise_level_and_label_matter(name: str) -> None:
    state, batch = state_of(SMALL[name]), batch_of(noised_spec(), 4)
    batch = {k: np.repeat(v[:1], 4, axis=0) for k, v in batch.items()}
    batch["label"] = np.asarray([0, -1, -5, CLASSES], np.int32)
    found = called(*state, batch)
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[1], found[3])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    batch["noise_level"] = batch["noise_level"] + np.float32([0, 1, 1, 1])
    assert np.abs(called(*state, batch)[1] - found[1]).max() > 1e-3


def test_dit_equals_the_equations() -> None:
    model = SMALL["dit"]
    assert isinstance(model, DiT)
    network, params, stats = state_of(model)
    batch = batch_with_withheld_labels(3)
    expected = dit_reference(model, jax.tree.map(np.float64, params), batch)
    np.testing.assert_allclose(called(network, params, stats, batch), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("parallelism", [FSDP(), Tensor(tensor=8), FSDPTensor(fsdp=4, tensor=2)])
@pytest.mark.parametrize("model", [UNet(widths=[32, 48], blocks=1, heads=8), DiT(patch=2, width=64, layers=1, heads=8)])
def test_the_axes_fit_every_layout(model: Model, parallelism: Any) -> None:
    network = make_network(model, noised_spec(classes=10))
    parameter_shardings(make_layout(parallelism, jax.devices()), network.params, network.axes)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient_beyond_rounding() -> None:
    batch, found = {k: jnp.asarray(v) for k, v in batch_with_withheld_labels(4).items()}, []
    for remat in ("none", "full", "dots"):
        network, params, stats = state_of(DiT(patch=4, width=16, layers=2, heads=8, remat=remat))

        def loss(params: Any, network: Network = network, stats: Any = stats) -> jax.Array:
            return jnp.mean(jnp.sin(network.merge(params, stats)(batch, train=True, rngs=None)))

        found.append(jax.jit(jax.grad(loss))(params))
    most = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(found[0]))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * most), found[0], other)


def test_patches_and_image_are_inverse() -> None:
    image = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    patches = patches_of(jnp.asarray(image), 2)
    np.testing.assert_array_equal(patches[1, 5], image[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(image_of(patches, 2, 3, 2), image)


def test_positions_differ_and_have_one_length() -> None:
    found = sines(4, 5, 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.sqrt(8), rtol=1e-6)
    assert len(np.unique(found.round(5), axis=0)) == 20


def test_dropout_happens_in_training_only() -> None:
    model = UNet(widths=[8], blocks=1, dropout=0.5)
    network, params, stats = state_of(model)
    batch = {k: jnp.asarray(v) for k, v in batch_with_withheld_labels(2).items()}

    def call(seed: int | None, train: bool) -> np.ndarray:
        rngs = None if seed is None else nnx.Rngs(seed)
        return np.asarray(network.merge(params, stats)(batch, train=train, rngs=rngs))

    np.testing.assert_array_equal(call(0, False), call(None, False))
    np.testing.assert_array_equal(call(0, True), call(0, True))
    assert np.abs(call(0, True) - call(1, True)).max() > 1e-3
    with pytest.raises(ValueError, match=r"a call with train=True needs rngs"):
        call(None, True)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_without_noise_names_the_objectives_to_choose(name: str) -> None:
    network, params, stats = state_of(SMALL[name])
    with pytest.raises(ConfigError, match=rf"model\.{name} reads .* no noise_level\. Choose .* @objective\.edm\(\)"):
        network.merge(params, stats)({"image": jnp.zeros((1, 8, 8, 1)), "label": jnp.zeros(1, int)}, train=False)


@pytest.mark.parametrize("name", SMALL)
def test_data_without_images(name: str) -> None:
    text = DataSpec({"inputs": ArraySpec((8,), "int32")}, vocab_size=65)
    with pytest.raises(ConfigError, match=rf"model\.{name} needs a dataset with images"):
        SMALL[name].build(text, nnx.Rngs(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(widths=[]), r"widths = \[\]: must have one number for each level"),
        (lambda: UNet(widths=[8, 0]), "widths = 0: must be at least 1"),
        (lambda: UNet(widths=[8], attention_levels=[1]), "attention_levels = 1: must be one of 0 to 0"),
        (lambda: UNet(widths=[8, 10], heads=4), "heads = 4: must divide the last of widths = 10"),
        (lambda: UNet(widths=[6, 8], heads=4, attention_levels=[0]), r"heads = 4: must divide widths\[0\] = 6"),
        (
            lambda: UNet(widths=[8] * 5).build(noised_spec(), nnx.Rngs(0)),
            r"2\^\(levels - 1\), with 5 widths, = 16: must divide the image's height = 8",
        ),
        (lambda: DiT(patch=2, width=18, layers=1, heads=3), "width = 18: must be a multiple of 4"),
        (lambda: DiT(patch=2, width=16, layers=1, heads=3), "heads = 3: must divide width = 16"),
        (
            lambda: DiT(patch=3, width=16, layers=1, heads=4).build(noised_spec(), nnx.Rngs(0)),
            "patch = 3: must divide the image's height = 8",
        ),
    ],
)
def test_bad_sizes(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def dit_reference(model: DiT, params: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """In float64 numpy, with loops over patches and heads."""
    image, side, count = np.float64(batch["image"]), model.patch, batch["image"].shape[1] // model.patch
    place = [(i, j) for i in range(count) for j in range(count)]
    patches = [image[:, i * side : (i + 1) * side, j * side : (j + 1) * side].reshape(len(image), -1) for i, j in place]
    x = (
        np.stack(patches, axis=1) @ params["patches"]["kernel"]
        + params["patches"]["bias"]
        + positions(place, model.width)
    )
    c = silu(conditioned(params["conditioning"], batch))
    for i in range(model.layers):
        p = params["blocks"][str(i)]
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(dense(p["modulation"], c)[:, None], 6, axis=-1)
        y, mixed = normalised(x) * (1 + scale1) + shift1, 0.0
        for head in range(model.heads):
            q, k, v = (
                y @ p["attention"][n]["kernel"][:, head] + p["attention"][n]["bias"][head]
                for n in ("query", "key", "value")
            )
            weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
            mixed = mixed + weights / weights.sum(-1, keepdims=True) @ v @ p["attention"]["out"]["kernel"][head]
        x = x + gate1 * (mixed + p["attention"]["out"]["bias"])
        h = dense(p["mlp"]["up"], normalised(x) * (1 + scale2) + shift2)
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + gate2 * dense(p["mlp"]["down"], h)
    shift, scale = np.split(dense(params["modulation"], c)[:, None], 2, axis=-1)
    out, found = dense(params["head"], normalised(x) * (1 + scale) + shift), np.zeros(image.shape)
    for n, (i, j) in enumerate(place):
        found[:, i * side : (i + 1) * side, j * side : (j + 1) * side] = out[:, n].reshape(len(image), side, side, -1)
    return found


def conditioned(params: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    features = np.float64(noise_features(jnp.asarray(batch["noise_level"])))
    angles = np.float64(batch["noise_level"])[:, None] * 100 ** (np.arange(32) / 31)
    np.testing.assert_allclose(features, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-4)
    rows = np.where(batch["label"] < 0, CLASSES, batch["label"])
    return dense(params["down"], silu(dense(params["up"], features))) + params["labels"][rows]


def positions(place: list[tuple[int, int]], width: int) -> np.ndarray:
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    rows = [np.concatenate([f(n * frequencies) for n in pair for f in (np.sin, np.cos)]) for pair in place]
    return np.stack(rows)


def dense(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
