"""What networks of diffusion share: what they read of a batch, and one vector for the noise level and the label."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.errors import ConfigError
from assay.outcome import Batch
from assay_plugins.models.layers import Linear, aligned, normal

FEATURES = 64
HIGHEST = 100.0  # radians a unit of noise level; levels lie between about -1.6 and 1.6


def noised_of(batch: Batch, model: str) -> tuple[Array, Array, Array]:
    """(`image`, `noise_level`, `label`) of a batch. Raises ConfigError when an objective that does not diffuse made it."""
    missing = [name for name in ("image", "noise_level", "label") if name not in batch]
    if missing:
        raise ConfigError(
            f"model.{model} reads image, noise_level and label, and this batch has no {', '.join(missing)}. "
            "Choose an objective that adds noise, such as @objective.edm(), and a dataset with labels"
        )
    return batch["image"], batch["noise_level"], batch["label"]


class Conditioning(nnx.Module):
    """silu(down(silu(up(features(noise_level)))) + labels[label]), (batch, width).

    labels: (classes + 1, width); the last row stands for no label (Ho and Salimans 2022, arXiv:2207.12598, section 3.2).
    """

    def __init__(self, width: int, classes: int, rngs: nnx.Rngs) -> None:
        self.up = Linear(
            {"features": FEATURES}, {"mlp": width}, init=normal(math.sqrt(1 / FEATURES)), bias=True, rngs=rngs
        )
        self.down = Linear({"mlp": width}, {"embed": width}, init=normal(math.sqrt(1 / width)), bias=True, rngs=rngs)
        table = 0.02 * jax.random.normal(rngs.params(), (classes + 1, width), jnp.float32)
        self.labels = nnx.Param(table, axes=(None, "embed"))

    def __call__(self, noise_level: Float[Array, " batch"], label: Int[Array, " batch"]) -> Float[Array, "batch width"]:
        """noise_level: any real. label: a class, or a negative number for none."""
        table = self.labels[...]
        rows = jnp.where(label < 0, table.shape[0] - 1, label)
        level = self.down(jax.nn.silu(self.up(noise_features(noise_level).astype(table.dtype))))
        return jax.nn.silu(level + table.at[rows].get(mode="clip"))


def noise_features(noise_level: Float[Array, " batch"]) -> Float[Array, "batch features"]:
    """Sines and cosines of 32 frequencies from 1 to 100 radians a unit, in fp32 (Vaswani et al. 2017, arXiv:1706.03762, 3.5)."""
    frequencies = jnp.asarray([HIGHEST ** (i / (FEATURES // 2 - 1)) for i in range(FEATURES // 2)], jnp.float32)
    angles = noise_level.astype(jnp.float32)[:, None] * aligned(frequencies, 2)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """An initializer: the branch that ends with it begins as nothing."""
    return jnp.zeros(shape, dtype)
