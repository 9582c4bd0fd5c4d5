"""The diffusion transformer: patches of a noised image through blocks whose norms the noise level and the label modulate."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.attention import Attention
from assay_plugins.models.block import BlockOptions, FeedForward
from assay_plugins.models.checks import at_least, divides
from assay_plugins.models.conditioning import Conditioning, noised_of, zeros
from assay_plugins.models.layers import Initializer, Linear, aligned, standardised
from assay_plugins.models.patches import image_of, patches_of
from assay_plugins.models.remat import Remat, rematerialised
from assay_plugins.models.specs import images_of

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiT:
    """Peebles and Xie 2023 (arXiv:2212.09748) with adaLN-zero. Reads `image`, `noise_level` and `label` (negative for none).

    Returns an image, which is 0 at first. patch: side of a square patch, in pixels. width: of the residual stream. layers: blocks.
    heads: of attention. mlp_width: hidden width of the feed-forward; None for 4 width.
    remat: what the backward pass computes again.
    """

    patch: int
    width: int
    layers: int
    heads: int
    mlp_width: int | None = None
    remat: Remat = "none"

    def __post_init__(self) -> None:
        """Raise ValueError for sizes out of range or that do not divide one another."""
        at_least(1, patch=self.patch, width=self.width, layers=self.layers, heads=self.heads, mlp_width=self.mlp_width)
        divides("heads", self.heads, "width", self.width)
        if self.width % 4:
            raise ValueError(f"width = {self.width}: must be a multiple of 4, for the positions")

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "DiffusionTransformer":
        """The network for labelled images. Raises ConfigError for other data, ValueError when `patch` does not divide the sides."""
        shape, classes = images_of(spec, "dit")
        divides("patch", self.patch, "the image's height", shape[0])
        divides("patch", self.patch, "the image's width", shape[1])
        return DiffusionTransformer(self, shape[2], classes, rngs)


class DiffusionTransformer(nnx.Module):
    """The network of `DiT`. Linear maps are drawn from Glorot and Bengio's uniform distribution (2010), as in the paper."""

    def __init__(self, options: DiT, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        o = options
        self.options = o
        features = o.patch * o.patch * channels
        init = uniform(features, o.width)
        self.patches = Linear({"conv_in": features}, {"embed": o.width}, init=init, bias=True, rngs=rngs)
        self.conditioning = Conditioning(o.width, classes, rngs)
        self.blocks = nnx.List([Block(o, rngs) for _ in range(o.layers)])
        self.modulation = Linear({"embed": o.width}, {"mlp": 2 * o.width}, init=zeros, bias=True, rngs=rngs)
        # The outputs are few and may be odd in number: they have the name of the inputs, which no layout divides.
        self.head = Linear({"embed": o.width}, {"conv_in": features}, init=zeros, bias=True, rngs=rngs)

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch height width channels"]:
        """batch: `image` (batch, height, width, channels), `noise_level` and `label` (batch,). There is no dropout."""
        image, noise_level, label = noised_of(batch, "dit")
        condition = self.conditioning(noise_level, label)
        side, (rows, columns) = self.options.patch, (n // self.options.patch for n in image.shape[1:3])
        positions = jnp.asarray(sines(rows, columns, self.options.width), condition.dtype)
        x = self.patches(patches_of(image.astype(condition.dtype), side)) + aligned(positions, 3)
        x = constrain(x, "batch", "sequence", "act_embed")
        for block in self.blocks:
            x = rematerialised(functools.partial(block, condition=condition), self.options.remat)(x)
        shift, scale = jnp.split(self.modulation(condition)[:, None], 2, axis=-1)
        return image_of(self.head(modulated(x, shift, scale)), rows, columns, side)


class Block(nnx.Module):
    """x += gate1 attention(norm(x) (1 + scale1) + shift1); x += gate2 mlp(norm(x) (1 + scale2) + shift2), section 3.2.

    The six vectors are a linear map of the condition that begins with zeros, so that each block begins as the identity.
    The norms have no parameters of their own; the feed-forward has GELU's tanh approximation.
    """

    def __init__(self, options: DiT, rngs: nnx.Rngs) -> None:
        o, mlp_width = options, options.mlp_width or 4 * options.width
        self.modulation = Linear({"embed": o.width}, {"mlp": 6 * o.width}, init=zeros, bias=True, rngs=rngs)
        init = uniform(o.width, o.width)
        self.attention = Attention(
            width=o.width,
            heads=o.heads,
            kv_heads=o.heads,
            head_dim=o.width // o.heads,
            causal=False,
            biases=True,
            qk_norm=None,
            norm_epsilon=EPSILON,
            dropout_rate=0.0,
            init=init,
            out_init=init,
            rngs=rngs,
        )
        sizes = _Glorot(
            layers=o.layers,
            width=o.width,
            heads=o.heads,
            kv_heads=o.heads,
            head_dim=o.width // o.heads,
            mlp_width=mlp_width,
            causal=False,
            activation="gelu_tanh",
        )
        self.mlp = FeedForward(sizes, rngs)

    def __call__(
        self, x: Float[Array, "batch seq width"], condition: Float[Array, "batch width"]
    ) -> Float[Array, "batch seq width"]:
        """One block further."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(condition)[:, None], 6, axis=-1)
        x = constrain(x + gate1 * self.attention(modulated(x, shift1, scale1)), "batch", "sequence", "act_embed")
        return constrain(x + gate2 * self.mlp(modulated(x, shift2, scale2)), "batch", "sequence", "act_embed")


class _Glorot(BlockOptions):
    """BlockOptions with the paper's first values of the feed-forward."""

    @property
    def init(self) -> Initializer:
        """Of either map: the two have the same sum of sizes."""
        return uniform(self.width, self.mlp_width)

    @property
    def residual_init(self) -> Initializer:
        """No smaller: the gates begin at 0."""
        return self.init


def modulated(
    x: Float[Array, "batch seq width"], shift: Float[Array, "batch 1 width"], scale: Float[Array, "batch 1 width"]
) -> Float[Array, "batch seq width"]:
    """norm(x) (1 + scale) + shift; the norm's statistics are fp32."""
    unit = standardised(x.astype(jnp.float32), EPSILON, True).astype(x.dtype)
    return unit * (1 + scale) + shift


def uniform(inputs: int, outputs: int) -> Initializer:
    """Draws from U(-a, a), a = sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010, eq. 16)."""
    limit = math.sqrt(6 / (inputs + outputs))
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def sines(rows: int, columns: int, width: int) -> Float[np.ndarray, "seq width"]:
    """Fixed positions: sines and cosines of the row in one half of `width`, of the column in the other (wavelengths 2 pi to 20000 pi)."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    parts = []
    for place in np.divmod(np.arange(rows * columns), columns):
        angles = place[:, None] * frequencies[None]
        parts += [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts, axis=1).astype(np.float32)
