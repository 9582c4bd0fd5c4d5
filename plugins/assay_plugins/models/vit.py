"""The vision transformer: an image as a sequence of patches."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.block import Biases, Block, BlockOptions
from assay_plugins.models.checks import at_least, divides, fraction
from assay_plugins.models.layers import Linear, aligned, dropout, dropout_key, make_norm
from assay_plugins.models.patches import patches_of
from assay_plugins.models.specs import images_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViT:
    """Dosovitskiy et al. 2021 (arXiv:2010.11929): pre-norm blocks with biases, LayerNorm and GELU over patches. Reads `image`.

    patch: side of a square patch, in pixels. width: of the residual stream. layers: blocks. heads: of attention.
    mlp_width: hidden width of the feed-forward; None for 4 width.
    pooling: the head reads an extra token (cls) or the mean over patches, either after the last norm.
    norm_epsilon, activation: as the transformer's. biases: in every map and norm of the blocks, or a list of where, as the transformer's.
    dropout: rate after the embedding, in the attention weights and at the end of each branch, in training.
    """

    patch: int
    width: int
    layers: int
    heads: int
    mlp_width: int | None = None
    pooling: Literal["cls", "mean"] = "cls"
    dropout: float = 0.0
    norm_epsilon: float = 1e-6
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    biases: Biases = True

    def __post_init__(self) -> None:
        """Raise ValueError for sizes out of range or that do not divide one another."""
        at_least(1, patch=self.patch, width=self.width, layers=self.layers, heads=self.heads, mlp_width=self.mlp_width)
        fraction("dropout", self.dropout)
        divides("heads", self.heads, "width", self.width)

    @property
    def block(self) -> BlockOptions:
        """The options of each block, with all sizes known."""
        return BlockOptions(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.width // self.heads,
            mlp_width=self.mlp_width or 4 * self.width,
            causal=False,
            norm_epsilon=self.norm_epsilon,
            activation=self.activation,
            biases=self.biases,
            dropout=self.dropout,
        )

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "VisionTransformer":
        """The network for labelled images. Raises ConfigError for other data, ValueError when `patch` does not divide the sides."""
        shape, classes = images_of(spec, "vit")
        divides("patch", self.patch, "the image's height", shape[0])
        divides("patch", self.patch, "the image's width", shape[1])
        return VisionTransformer(self, shape, classes, rngs)


class VisionTransformer(nnx.Module):
    """The network of `ViT`."""

    def __init__(self, options: ViT, shape: tuple[int, int, int], classes: int, rngs: nnx.Rngs) -> None:
        o, block = options, options.block
        height, width, channels = shape
        self.options = o
        count = (height // o.patch) * (width // o.patch) + (o.pooling == "cls")
        # One patch, row by row with its channels, is one vector.
        inputs = {"conv_in": o.patch * o.patch * channels}
        self.patches = Linear(inputs, {"embed": o.width}, init=block.init, bias=True, rngs=rngs)
        cls = jnp.zeros((o.width,), jnp.float32)
        self.cls = nnx.Param(cls, axes=("embed",)) if o.pooling == "cls" else None
        positions = block.init(rngs.params(), (count, o.width), jnp.dtype(jnp.float32))
        self.positions = nnx.Param(positions, axes=("position", "embed"))
        self.blocks = nnx.List([Block(block, rngs) for _ in range(o.layers)])
        self.norm = make_norm("layernorm", "embed", o.width, epsilon=o.norm_epsilon, bias=True)
        self.head = Linear({"embed": o.width}, {"classes": classes}, init=block.init, bias=True, rngs=rngs)

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch classes"]:
        """batch: `image`, (batch, height, width, channels). rngs: for dropout, in training."""
        rate = self.options.dropout
        key = dropout_key(rate, train, rngs)
        keys = [None] * (1 + self.options.layers) if key is None else jax.random.split(key, 1 + self.options.layers)
        x = dropout(self._embedded(batch["image"]), rate, keys[0])
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, dropout_key=block_key)
        x = self.norm(x)
        pooled = x[:, 0] if self.options.pooling == "cls" else jnp.mean(x, axis=1)
        return self.head(pooled)

    def _embedded(self, image: Array) -> Array:
        """Patches, after the extra token where there is one, plus their positions: (batch, tokens, width)."""
        x = self.patches(patches_of(image.astype(self.positions.dtype), self.options.patch))
        if self.cls is not None:
            x = jnp.concatenate([jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[2])), x], axis=1)
        return constrain(x + aligned(self.positions[...], 3), "batch", "sequence", "act_embed")
