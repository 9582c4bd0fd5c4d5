"""What the objectives of diffusion share: noise for training and for evaluation, guidance, and sampling as a loop of compiled steps.

An objective adds noise to images and asks the network what the noise, or the image, was. The network is called with the batch in which
`image` is the noised image, `noise_level` tells how much noise (log(sigma) / 4, sigma the noise's standard deviation for an image of
scale 1; Karras et al. 2022, arXiv:2206.00364, table 1, c_noise), and `label` is negative where the label is withheld.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt32

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Batch, Outcome

NO_LABEL = -1
EVALUATION_SEED = 0
MOST_ROWS = 32  # of a grid of samples


@dataclasses.dataclass(frozen=True)
class Task:
    """What the network is shown and asked for: image and target (batch, height, width, channels), noise_level (batch,)."""

    image: Array
    noise_level: Array
    target: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(abc.ABC):
    """The base of the objectives. Pixels from pixel_low to pixel_high become -1 to 1.

    label_dropout: share of the labels that training withholds, so that the network can be guided (Ho and Salimans 2022,
    arXiv:2207.12598, algorithm 1). guidance_scale: of samples; with the network's conditional and unconditional predictions c and u
    they follow u + guidance_scale (c - u). 1 is the conditional model, 0 the unconditional one; the paper's w is guidance_scale - 1.
    sampling_steps: noise levels of a sample. grid_columns: samples of each class in `sample_images`.
    """

    pixel_low: float = 0.0
    pixel_high: float = 1.0
    label_dropout: float = 0.1
    guidance_scale: float = 1.0
    sampling_steps: int = 50
    grid_columns: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if not self.pixel_low < self.pixel_high:
            raise ValueError(f"pixel_high = {self.pixel_high}: must be more than pixel_low = {self.pixel_low}")
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ValueError(f"label_dropout = {self.label_dropout}: must be from 0 to 1")
        if not self.guidance_scale >= 0.0:
            raise ValueError(f"guidance_scale = {self.guidance_scale}: must be at least 0")
        for name in ("sampling_steps", "grid_columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")

    @abc.abstractmethod
    def task(
        self, clean: Float[Array, "batch height width channels"], noise: Array, uniform: Float[Array, " batch"]
    ) -> Task:
        """What to ask of `clean` images in [-1, 1]; noise: like them, from N(0, 1). uniform: from (0, 1), decides how much of it."""

    @abc.abstractmethod
    def levels(self) -> Float[np.ndarray, " steps+1"]:
        """What `step` calls the noise levels of a sample, from the most noise to none."""

    @abc.abstractmethod
    def start(self, noise: Float[Array, "batch height width channels"]) -> Array:
        """The first, noisiest state of samples, from noise of N(0, 1)."""

    @abc.abstractmethod
    def step(self, predict: Any, x: Array, level: Array, following: Array, noise: Array, *, last: bool) -> Array:
        """`x` at `level`, taken to the level `following`; predict(image, noise_level ()) is the guided network."""

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: `image` (batch, height, width, channels) and `label`, integers (batch,); a negative label is withheld.

        The loss of an example is the mean over its pixels. In evaluation its noise is drawn from a key that the image itself
        decides, so that no division into batches changes the value. Raises ConfigError for a network that returns no image.
        """
        image, label = _labelled_images(batch)
        clean = 2.0 * (image.astype(jnp.float32) - self.pixel_low) / (self.pixel_high - self.pixel_low) - 1.0
        if train:
            assert rngs is not None, "training has rngs"
            keys = jax.random.split(rngs.noise(), 3)
            noise, uniform = _draws(keys[0], clean.shape), _uniform(keys[1], label.shape)
            label = jnp.where(jax.random.bernoulli(keys[2], self.label_dropout, label.shape), NO_LABEL, label)
        else:
            noise, uniform = jax.vmap(functools.partial(_of_row, clean.shape[1:]))(content_hash(image))
        task = self.task(clean, noise, uniform)
        predicted = _called(module, batch, task.image, task.noise_level, label, train=train, rngs=rngs)
        losses = jnp.mean(jnp.square(predicted - task.target), axis=(1, 2, 3))
        return Outcome(losses, weights=jnp.ones_like(losses))

    def generate(
        self, module: nnx.Module, spec: DataSpec, labels: Sequence[int] | np.ndarray, *, seed: int
    ) -> Float[np.ndarray, "batch height width channels"]:
        """A sample for each label (negative: none), in the dataset's pixel values; a pure function of its arguments.

        The first noise does not depend on the settings, so that samplers can be compared on equal draws.
        """
        shape = (len(labels), *_image_shape(spec))
        first, rest = jax.random.split(jax.random.key(seed))
        x = self.start(_draws(first, shape))
        graph, state = nnx.split(module)
        levels = self.levels()
        # A loop on the host: XLA's CPU code for convolutions is slower inside a loop of its own, and a step is a large program.
        for i, (level, following) in enumerate(itertools.pairwise(levels)):
            steps = {"i": jax.random.fold_in(rest, i), "level": level, "following": following}
            x = _stepped(graph, state, x, np.asarray(labels, np.int32), steps, self, i == len(levels) - 2)
        pixels = (np.clip(np.asarray(x), -1.0, 1.0) + 1.0) / 2.0
        return pixels * (self.pixel_high - self.pixel_low) + self.pixel_low

    def sample_images(self, module: nnx.Module, spec: DataSpec, *, seed: int) -> Mapping[str, np.ndarray]:
        """{"samples": a grid with a row for each class}, of the first 32 classes where there are more; see ImageSampler."""
        rows = min(spec.num_classes or 1, MOST_ROWS)
        labels = np.repeat(np.arange(rows) if spec.num_classes else np.asarray([NO_LABEL]), self.grid_columns)
        pixels = self.generate(module, spec, labels, seed=seed)
        shares = (pixels - self.pixel_low) / (self.pixel_high - self.pixel_low)
        return {"samples": grid(np.round(255.0 * shares).astype(np.uint8), rows)}


def guided(predict: Any, x: Array, noise_level: Array, labels: Int[Array, " batch"], scale: float) -> Array:
    """u + scale (c - u) of predict(x, noise_level, labels), c with and u without labels (Ho and Salimans 2022, eq. 6, w = scale - 1)."""
    if scale == 1.0:
        return predict(x, noise_level, labels)
    without = predict(x, noise_level, jnp.full_like(labels, NO_LABEL))
    return without if scale == 0.0 else without + scale * (predict(x, noise_level, labels) - without)


def content_hash(image: Float[Array, "batch height width channels"]) -> UInt32[Array, " batch"]:
    """A number for each image from its bits alone, the same in any batch and on any mesh: sums of integers are exact."""
    bits = jax.lax.bitcast_convert_type(image.astype(jnp.float32), jnp.uint32).reshape(image.shape[0], -1)
    place = jnp.arange(bits.shape[1], dtype=jnp.uint32)[None]
    mixed = (bits ^ (bits >> 15)) * (jnp.uint32(2654435761) * (2 * place + 1))
    return jnp.sum(mixed ^ (mixed >> 13), axis=1, dtype=jnp.uint32)


def grid(images: UInt8[np.ndarray, "batch height width channels"], rows: int) -> UInt8[np.ndarray, "h w channels"]:
    """The images by rows, a pixel apart."""
    count, height, width, channels = images.shape
    columns = count // rows
    padded = np.pad(images.reshape(rows, columns, height, width, channels), ((0, 0),) * 2 + ((0, 1),) * 2 + ((0, 0),))
    whole = padded.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    return whole[:-1, :-1]


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _stepped(
    graph: Any, state: Any, x: Array, labels: Array, steps: Mapping[str, Array], objective: Diffusion, last: bool
) -> Array:
    """One step of all samples."""
    module = nnx.merge(graph, state)

    def predict(x: Array, noise_level: Array, labels: Array) -> Array:
        level = jnp.broadcast_to(noise_level, labels.shape)
        return _called(module, {}, x, level, labels, train=False, rngs=None)

    def network(x: Array, noise_level: Array) -> Array:
        return guided(predict, x, noise_level, labels, objective.guidance_scale)

    noise = _draws(steps["i"], x.shape)
    return objective.step(network, x, steps["level"], steps["following"], noise, last=last)


def _called(
    module: Any, batch: Batch, image: Array, level: Array, label: Array, *, train: bool, rngs: nnx.Rngs | None
) -> Float[Array, "batch height width channels"]:
    """The network's image in fp32. Raises ConfigError for a network that returns none."""
    shown = {**batch, "image": image, "noise_level": level, "label": label}
    found = module(shown, train=train, rngs=rngs)
    if found.shape != image.shape:
        raise ConfigError(
            f"diffusion needs a model that returns an image {image.shape[1:]}; {type(module).__name__} returned {found.shape[1:]} "
            "for each example. Choose @model.unet() or @model.dit()"
        )
    return found.astype(jnp.float32)


def _labelled_images(batch: Batch) -> tuple[Array, Array]:
    """(`image`, `label`). Raises ConfigError where the dataset has no images; without labels all are withheld."""
    if "image" not in batch or batch["image"].ndim != 4:
        raise ConfigError(
            f"diffusion needs a dataset with images (height, width, channels); this one has {', '.join(sorted(batch))}. "
            "Choose an image dataset, such as @dataset.digits()"
        )
    image = batch["image"]
    return image, batch["label"] if "label" in batch else jnp.full(image.shape[:1], NO_LABEL, jnp.int32)


def _image_shape(spec: DataSpec) -> tuple[int, ...]:
    if "image" not in spec.elements:
        raise ConfigError(
            "diffusion samples images, and this dataset has none. Choose an image dataset, such as @dataset.digits()"
        )
    return spec.elements["image"].shape


def _of_row(shape: tuple[int, ...], number: Array) -> tuple[Array, Array]:
    """(noise, uniform) of one evaluated image."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION_SEED), number))
    return _draws(keys[0], shape), _uniform(keys[1], ())


def _draws(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape, jnp.float32)


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Never 0 or 1, where a quantile of the normal distribution would be infinite."""
    return jax.random.uniform(key, shape, jnp.float32, 1e-6, 1.0 - 1e-6)
