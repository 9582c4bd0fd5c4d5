"""Residual networks, from CIFAR-sized ones to ImageNet's ResNet-18 and ResNet-50."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.checks import at_least
from assay_plugins.models.convolution import Convolution, ImageNorm, make_image_norm
from assay_plugins.models.layers import Linear, normal
from assay_plugins.models.specs import images_of

BlockKind = Literal["basic", "bottleneck"]
_EXPANSION = 4  # a bottleneck's output channels by its width


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet:
    """He et al. 2016 (arXiv:1512.03385); Goyal et al. 2017 (arXiv:1706.02677) for details. Reads `image`.

    widths: channels of each stage; each stage but the first halves the image's sides. blocks: blocks of each stage.
    block: basic is two 3x3 convolutions; bottleneck 1x1, 3x3 (which has the stride) and 1x1 to four times the width.
    stem: small is one 3x3 convolution (CIFAR); large a 7x7 one of stride 2 and a 3x3 maximum of stride 2 (ImageNet).
    norm: batch or group, after each convolution.

    ResNet-18: widths (64, 128, 256, 512), blocks (2, 2, 2, 2), basic, large. ResNet-50: blocks (3, 4, 6, 3), bottleneck.
    """

    widths: Sequence[int]
    blocks: Sequence[int]
    block: BlockKind = "basic"
    stem: Literal["small", "large"] = "small"
    norm: ImageNorm = "batch"

    def __post_init__(self) -> None:
        """Raise ValueError for sizes out of range, or numbers of stages that differ."""
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise ValueError(
                f"blocks = {list(self.blocks)}: must have one number for each of widths = {list(self.widths)}, at least one"
            )
        for width, blocks in zip(self.widths, self.blocks, strict=True):
            at_least(1, widths=width, blocks=blocks)

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "ResidualNetwork":
        """The network for labelled images. Raises ConfigError for other data."""
        shape, classes = images_of(spec, "resnet")
        return ResidualNetwork(self, shape[2], classes, rngs)


class ResidualNetwork(nnx.Module):
    """The network of `ResNet`."""

    def __init__(self, options: ResNet, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        o = options
        self.options = o
        large = o.stem == "large"
        self.stem = Convolution(channels, o.widths[0], 7 if large else 3, stride=2 if large else 1, rngs=rngs)
        self.stem_norm = make_image_norm(o.norm, o.widths[0])
        block: type[Basic | Bottleneck] = Basic if o.block == "basic" else Bottleneck
        inputs = o.widths[0]
        stages = []
        for stage, (width, count) in enumerate(zip(o.widths, o.blocks, strict=True)):
            made = []
            for i in range(count):
                made.append(block(inputs, width, stride=2 if stage > 0 and i == 0 else 1, norm=o.norm, rngs=rngs))
                inputs = width * block.expansion
            stages.append(nnx.List(made))
        self.stages = nnx.List(stages)
        init = normal(math.sqrt(1 / inputs))
        self.head = Linear({"features": inputs}, {"classes": classes}, init=init, bias=True, rngs=rngs)

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch classes"]:
        """batch: `image`, (batch, height, width, channels). With train=True the running averages of batch norms are updated."""
        x = batch["image"].astype(self.stem.kernel.dtype)
        x = jax.nn.relu(self.stem_norm(self.stem(x), train=train))
        if self.options.stem == "large":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = constrain(block(x, train=train), "batch", None, None, None)
        return self.head(jnp.mean(x, axis=(1, 2)))


class Basic(nnx.Module):
    """relu(x + norm(conv3(relu(norm(conv3(x))))))."""

    expansion = 1

    def __init__(self, inputs: int, width: int, *, stride: int, norm: ImageNorm, rngs: nnx.Rngs) -> None:
        self.conv1 = Convolution(inputs, width, 3, stride=stride, rngs=rngs)
        self.norm1 = make_image_norm(norm, width)
        self.conv2 = Convolution(width, width, 3, stride=1, rngs=rngs)
        self.norm2 = make_image_norm(norm, width, scale=0.0)
        self.shortcut = _shortcut(inputs, width, stride, norm, rngs)

    def __call__(self, x: Float[Array, "batch height width inputs"], *, train: bool) -> Array:
        """One block further."""
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, train=train)))


class Bottleneck(nnx.Module):
    """relu(x + norm(conv1(relu(norm(conv3(relu(norm(conv1(x)))))))))."""

    expansion = _EXPANSION

    def __init__(self, inputs: int, width: int, *, stride: int, norm: ImageNorm, rngs: nnx.Rngs) -> None:
        outputs = width * _EXPANSION
        self.conv1 = Convolution(inputs, width, 1, stride=1, rngs=rngs)
        self.norm1 = make_image_norm(norm, width)
        self.conv2 = Convolution(width, width, 3, stride=stride, rngs=rngs)
        self.norm2 = make_image_norm(norm, width)
        self.conv3 = Convolution(width, outputs, 1, stride=1, rngs=rngs)
        self.norm3 = make_image_norm(norm, outputs, scale=0.0)
        self.shortcut = _shortcut(inputs, outputs, stride, norm, rngs)

    def __call__(self, x: Float[Array, "batch height width inputs"], *, train: bool) -> Array:
        """One block further."""
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = jax.nn.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(y), train=train)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, train=train)))


class Shortcut(nnx.Module):
    """norm(conv1(x)), where a block changes the shape."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: ImageNorm, rngs: nnx.Rngs) -> None:
        self.conv = Convolution(inputs, outputs, 1, stride=stride, rngs=rngs)
        self.norm = make_image_norm(norm, outputs)

    def __call__(self, x: Float[Array, "batch height width inputs"], *, train: bool) -> Array:
        """`x` in the block's shape."""
        return self.norm(self.conv(x), train=train)


def _shortcut(inputs: int, outputs: int, stride: int, norm: ImageNorm, rngs: nnx.Rngs) -> Shortcut | None:
    """None where a block keeps the shape."""
    if inputs == outputs and stride == 1:
        return None
    return Shortcut(inputs, outputs, stride=stride, norm=norm, rngs=rngs)
