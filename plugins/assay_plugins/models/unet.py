"""The U-Net of diffusion models: residual blocks at falling and then rising resolution, with connections across."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.attention import Attention
from assay_plugins.models.checks import at_least, divides, fraction
from assay_plugins.models.conditioning import Conditioning, noised_of, zeros
from assay_plugins.models.convolution import Convolution
from assay_plugins.models.layers import Linear, aligned, dropout, dropout_key, normal
from assay_plugins.models.specs import images_of

EPSILON = 1e-5
_GROUP = 4  # channels in a group of the norms, at least
_EXPANSION = 4  # the conditioning vector's width by the first level's


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """Ho et al. 2020 (arXiv:2006.11239, appendix B), with the adaptive group norm of Dhariwal and Nichol 2021 (arXiv:2105.05233).

    Reads `image`, `noise_level` and `label` (negative for none); returns an image.

    widths: channels of each level; each level but the first halves the image's sides. blocks: residual blocks of each level on the
    way down; one more on the way up. attention_levels: the levels, counted from 0, whose blocks end with attention; the middle always
    has it. heads: of attention. dropout: rate within each block, in training.
    """

    widths: Sequence[int]
    blocks: int = 2
    attention_levels: Sequence[int] = ()
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for sizes out of range or that do not divide one another."""
        if not self.widths:
            raise ValueError("widths = []: must have one number for each level, at least one")
        for width in self.widths:
            at_least(1, widths=width)
        at_least(1, blocks=self.blocks, heads=self.heads)
        fraction("dropout", self.dropout)
        for level in self.attention_levels:
            if not 0 <= level < len(self.widths):
                raise ValueError(f"attention_levels = {level}: must be one of 0 to {len(self.widths) - 1}")
            divides("heads", self.heads, f"widths[{level}]", self.widths[level])
        divides("heads", self.heads, "the last of widths", self.widths[-1])

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Network":
        """The network for labelled images. Raises ConfigError for other data, ValueError for sides that cannot be halved so often."""
        shape, classes = images_of(spec, "unet")
        parts = 2 ** (len(self.widths) - 1)
        divides(f"2^(levels - 1), with {len(self.widths)} widths,", parts, "the image's height", shape[0])
        divides(f"2^(levels - 1), with {len(self.widths)} widths,", parts, "the image's width", shape[1])
        return Network(self, shape[2], classes, rngs)


class Network(nnx.Module):
    """The network of `UNet`. Its output is 0 at first: the last convolution begins with zeros, as each block's last one does."""

    def __init__(self, options: UNet, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        o, width = options, options.widths[0]
        self.options = o
        vector = _EXPANSION * width
        self.conditioning = Conditioning(vector, classes, rngs)
        self.stem = Convolution(channels, width, 3, stride=1, rngs=rngs)
        skips = [width]
        encoder: list[Block | Down] = []
        decoder: list[Block | Up] = []
        for level, outputs in enumerate(o.widths):
            for _ in range(o.blocks):
                encoder.append(self._block(width, outputs, vector, level in o.attention_levels, rngs))
                width = outputs
                skips.append(width)
            if level < len(o.widths) - 1:
                encoder.append(Down(width, rngs))
                skips.append(width)
        self.middle = nnx.List([self._block(width, width, vector, attends, rngs) for attends in (True, False)])
        for level, outputs in reversed([*enumerate(o.widths)]):
            for _ in range(o.blocks + 1):
                decoder.append(self._block(width + skips.pop(), outputs, vector, level in o.attention_levels, rngs))
                width = outputs
            if level:
                decoder.append(Up(width, rngs))
        self.encoder, self.decoder = nnx.List(encoder), nnx.List(decoder)
        self.norm = GroupNorm(width)
        self.head = zeroed(Convolution(width, channels, 3, stride=1, rngs=rngs), None)

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch height width channels"]:
        """batch: `image` (batch, height, width, channels), `noise_level` and `label` (batch,). rngs: for dropout, in training."""
        image, noise_level, label = noised_of(batch, "unet")
        condition = self.conditioning(noise_level, label)
        layers = [*self.encoder, *self.middle, *self.decoder]
        key = dropout_key(self.options.dropout, train, rngs)
        keys = [None] * len(layers) if key is None else [*jax.random.split(key, len(layers))]
        x = self.stem(image.astype(condition.dtype))
        skips = [x]
        for i, (layer, layer_key) in enumerate(zip(layers, keys, strict=True)):
            rising = i >= len(layers) - len(self.decoder)
            if rising and isinstance(layer, Block):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = constrain(layer(x, condition, layer_key), "batch", None, None, None)
            if i < len(self.encoder):
                skips.append(x)
        return self.head(jax.nn.silu(self.norm(x)))

    def _block(self, inputs: int, outputs: int, vector: int, attends: bool, rngs: nnx.Rngs) -> "Block":
        o = self.options
        return Block(inputs, outputs, vector, heads=o.heads if attends else 0, dropout_rate=o.dropout, rngs=rngs)


class Block(nnx.Module):
    """shortcut(x) + conv(dropout(silu(adaptive_norm(conv(silu(norm(x))))))), then attention added where there are heads."""

    def __init__(
        self, inputs: int, outputs: int, vector: int, *, heads: int, dropout_rate: float, rngs: nnx.Rngs
    ) -> None:
        self.dropout_rate = dropout_rate
        self.norm1, self.norm2 = GroupNorm(inputs), GroupNorm(outputs)
        self.conv1 = Convolution(inputs, outputs, 3, stride=1, rngs=rngs)
        self.modulation = Linear({"mlp": vector}, {"conv_out": 2 * outputs}, init=zeros, bias=True, rngs=rngs)
        self.conv2 = zeroed(Convolution(outputs, outputs, 3, stride=1, rngs=rngs))
        self.shortcut = None if inputs == outputs else Convolution(inputs, outputs, 1, stride=1, rngs=rngs)
        self.attention = ImageAttention(outputs, heads, rngs) if heads else None

    def __call__(
        self, x: Float[Array, "batch height width inputs"], condition: Float[Array, "batch vector"], key: Array | None
    ) -> Float[Array, "batch height width outputs"]:
        """One block further; key: for dropout."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        scale, shift = jnp.split(self.modulation(condition)[:, None, None], 2, axis=-1)
        y = self.norm2(y) * (1 + scale) + shift
        y = self.conv2(dropout(jax.nn.silu(y), self.dropout_rate, key))
        x = y + (x if self.shortcut is None else self.shortcut(x))
        return x if self.attention is None else self.attention(x)


class ImageAttention(nnx.Module):
    """x + attention(norm(x)), every place to every place."""

    def __init__(self, channels: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm = GroupNorm(channels)
        self.attention = Attention(
            width=channels,
            heads=heads,
            kv_heads=heads,
            head_dim=channels // heads,
            causal=False,
            biases=True,
            qk_norm=None,
            norm_epsilon=EPSILON,
            dropout_rate=0.0,
            init=normal(math.sqrt(1 / channels)),
            out_init=zeros,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """One branch further."""
        flat = self.norm(x).reshape(x.shape[0], -1, x.shape[3])
        return x + self.attention(flat).reshape(x.shape)


class Down(nnx.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.conv = Convolution(channels, channels, 3, stride=2, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"], condition: Array, key: Array | None) -> Array:
        """Half the sides."""
        return self.conv(x)


class Up(nnx.Module):
    """Each pixel becomes four, then a convolution."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.conv = Convolution(channels, channels, 3, stride=1, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"], condition: Array, key: Array | None) -> Array:
        """Twice the sides."""
        batch, height, width, channels = x.shape
        # Not jnp.repeat, whose gradient is a scatter.
        four = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        return self.conv(four.reshape(batch, 2 * height, 2 * width, channels))


class GroupNorm(nnx.Module):
    """scale * (x - mean) / sqrt(variance + 1e-5) + bias over groups of channels of each example (Wu and He 2018, arXiv:1803.08494).

    At most 32 groups, of at least 4 channels where there are as many: a group of one channel would hide, at a resolution of few
    pixels, what the channel says. Statistics are fp32.
    """

    def __init__(self, channels: int) -> None:
        most = max(1, min(32, channels // _GROUP))
        self.groups = max(g for g in range(1, most + 1) if channels % g == 0)
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32), axes=("conv_out",))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32), axes=("conv_out",))

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """x, normalised; same shape and dtype."""
        grouped = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
        centred = grouped - jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True)
        unit = (centred * jax.lax.rsqrt(variance + EPSILON)).reshape(x.shape).astype(x.dtype)
        return unit * aligned(self.scale[...], 4) + aligned(self.bias[...], 4)


def zeroed(convolution: Convolution, outputs: str | None = "conv_out") -> Convolution:
    """The same with a kernel of zeros. outputs: the logical name of its output channels, None where they are too few to divide."""
    kernel = jnp.zeros_like(convolution.kernel[...])
    convolution.kernel = nnx.Param(kernel, axes=(None, None, "conv_in", outputs))
    return convolution
