"""Convolution and the norms of convolutional networks, with logical axis names. Images are (batch, height, width, channels)."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay_plugins.models.layers import aligned

ImageNorm = Literal["batch", "group"]
EPSILON = 1e-5


class Convolution(nnx.Module):
    """A square convolution without bias, padded by half its size; kernel: (size, size, inputs, outputs).

    Drawn from N(0, 2 / (size^2 outputs)) (He et al. 2015, arXiv:1502.01852, eq. 14: "fan out").
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, rngs: nnx.Rngs) -> None:
        self.size, self.stride = size, stride
        shape = (size, size, inputs, outputs)
        kernel = math.sqrt(2 / (size * size * outputs)) * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(kernel, axes=(None, None, "conv_in", "conv_out"))

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
        """Each side becomes ceil(side / stride)."""
        return jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            window_strides=(self.stride, self.stride),
            padding=[(self.size // 2, self.size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class BatchNorm(nnx.Module):
    """scale * (x - mean) / sqrt(variance + 1e-5) + bias by channel (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1).

    In training the statistics are those of the whole (micro-)batch, over all devices, and `mean` and `var` move a tenth of the
    way to them (`var` to the unbiased one); otherwise they are `mean` and `var`. Statistics are fp32. The batch's `mask` is not
    read: training has no rows that only pad.
    """

    def __init__(self, channels: int, *, scale: float = 1.0) -> None:
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32), axes=("conv_out",))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32), axes=("conv_out",))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "batch height width channels"], *, train: bool) -> Array:
        """x, normalised; same shape and dtype."""
        wide = x.astype(jnp.float32)
        if train:
            mean = jnp.mean(wide, axis=(0, 1, 2))
            variance = jnp.mean(jnp.square(wide - aligned(mean, 4)), axis=(0, 1, 2))
            count = x.size // x.shape[-1]
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * variance * (count / max(count - 1, 1))
        else:
            mean, variance = self.mean[...], self.var[...]
        normalised = (wide - aligned(mean, 4)) * aligned(jax.lax.rsqrt(variance + EPSILON), 4)
        return normalised.astype(x.dtype) * aligned(self.scale[...], 4) + aligned(self.bias[...], 4)


class GroupNorm(nnx.Module):
    """scale * (x - mean) / sqrt(variance + 1e-5) + bias, statistics over groups of channels of each example.

    Wu and He 2018 (arXiv:1803.08494). groups: 32, or the greatest divisor of the channels below that. The same in training and
    out of it. Statistics are fp32.
    """

    def __init__(self, channels: int, *, scale: float = 1.0) -> None:
        self.groups = max(g for g in range(1, 33) if channels % g == 0)
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32), axes=("conv_out",))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32), axes=("conv_out",))

    def __call__(self, x: Float[Array, "batch height width channels"], *, train: bool) -> Array:
        """x, normalised; same shape and dtype."""
        grouped = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 2, 4), keepdims=True)
        normalised = ((grouped - mean) * jax.lax.rsqrt(variance + EPSILON)).reshape(x.shape)
        return normalised.astype(x.dtype) * aligned(self.scale[...], 4) + aligned(self.bias[...], 4)


def make_image_norm(kind: ImageNorm, channels: int, *, scale: float = 1.0) -> BatchNorm | GroupNorm:
    """The norm called `kind`; `scale` is its factor's first value."""
    return BatchNorm(channels, scale=scale) if kind == "batch" else GroupNorm(channels, scale=scale)
