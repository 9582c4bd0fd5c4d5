"""The decoder-only transformer; GPT-2 and Llama are two settings of it (see assay_plugins/configs)."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.attention import Cache
from assay_plugins.models.block import STD, Activation, Biases, Block, BlockOptions
from assay_plugins.models.checks import at_least, divides, fraction
from assay_plugins.models.heads import kernel_of, logits_of
from assay_plugins.models.layers import Embedding, Linear, Norm, dropout, dropout_key, make_norm, normal
from assay_plugins.models.moe import Dispatch
from assay_plugins.models.remat import Remat, rematerialised
from assay_plugins.models.rope import Band, Rotation, rotation
from assay_plugins.models.specs import tokens_of

Position = Literal["rope", "learned", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """A pre-norm decoder. Reads `inputs`, and `segment_ids` and `positions` where the dataset packs documents.

    layers: blocks. width: of the residual stream. heads: of queries. kv_heads: of keys and values; None for as many.
    head_dim: width of one head; None for width / heads.
    mlp_width: hidden width of the feed-forward; None for 4 width, with swiglu 8/3 width rounded up to a multiple of 64.
    norm, norm_epsilon: before attention, before the feed-forward and before the head.
    position: rope turns queries and keys by angles with base rope_theta; learned adds a vector for each of `context` positions.
    rope_scaling, rope_band: the angles are divided by rope_scaling, or with a band (low, high, context) only those with few turns
        within `context` positions, as in Llama 3.1 (see assay_plugins.models.rope.frequencies).
    window: a position attends to itself and the `window` - 1 before it (Beltagy et al. 2020, arXiv:2004.05150); None for all before it.
    window_layers: the blocks with the window, from 0; None for all.
    activation: gelu is exact, gelu_tanh GPT-2's approximation. tied_head: the head is the embedding.
    qk_norm: norm of each query and key head (Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442).
    biases: in every linear map but the head, and in LayerNorm; or a list of where: 'qkv' (queries, keys, values), 'out' (of the
        attention), 'mlp', 'norm' (LayerNorm).
    experts, experts_per_token: a mixture of experts in place of each feed-forward (see assay_plugins.models.moe); None for none.
    expert_dispatch: 'dense' computes every expert for every token, 'grouped' the chosen ones, on tokens sorted by expert.
    dropout: rate after the embedding, in the attention weights and at the end of each branch, in training.
    context: number of learned positions; None for the dataset's row length.
    vocab_size: rows of the embedding and columns of the head; None for the dataset's vocabulary. More than that is padding.
    vocab_multiple: the vocabulary is padded to a multiple of this, so that devices can divide it; padding has logit -1e30.
    remat: what the backward pass computes again (see assay_plugins.models.remat).
    """

    layers: int
    width: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    norm: Norm = "rmsnorm"
    norm_epsilon: float = 1e-5
    position: Position = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: float = 1.0
    rope_band: Band | None = None
    window: int | None = None
    window_layers: tuple[int, ...] | None = None
    activation: Activation = "swiglu"
    tied_head: bool = False
    qk_norm: bool = False
    biases: Biases = False
    experts: int | None = None
    experts_per_token: int = 2
    expert_dispatch: Dispatch = "grouped"
    dropout: float = 0.0
    context: int | None = None
    vocab_size: int | None = None
    vocab_multiple: int = 1
    remat: Remat = "none"

    def __post_init__(self) -> None:
        """Raise ValueError for sizes out of range or that do not divide one another."""
        at_least(1, layers=self.layers, width=self.width, heads=self.heads, vocab_multiple=self.vocab_multiple)
        at_least(1, kv_heads=self.kv_heads, head_dim=self.head_dim, mlp_width=self.mlp_width, context=self.context)
        at_least(1, window=self.window, vocab_size=self.vocab_size)
        fraction("dropout", self.dropout)
        self._check_experts()
        self._check_positions()
        if self.head_dim is None:
            divides("heads", self.heads, "width", self.width, "or set head_dim")
        if self.kv_heads is not None:
            divides("kv_heads", self.kv_heads, "heads", self.heads)
        if self.position == "rope" and self.block.head_dim % 2:
            raise ValueError(f"head_dim = {self.block.head_dim}: must be even with position = 'rope'")

    def _check_experts(self) -> None:
        if self.experts is None:
            return
        at_least(1, experts=self.experts, experts_per_token=self.experts_per_token)
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token = {self.experts_per_token}: must be at most experts = {self.experts}")
        if self.activation != "swiglu":
            raise ValueError(f"activation = {self.activation!r}: must be 'swiglu' with experts")
        if self.biases is True or (self.biases and "mlp" in self.biases):
            raise ValueError(f"biases = {self.biases!r}: experts have none; list the other places, such as ('qkv',)")

    def _check_positions(self) -> None:
        if self.rope_scaling <= 0:
            raise ValueError(f"rope_scaling = {self.rope_scaling}: must be greater than 0")
        if self.rope_band is not None and not 0 <= self.rope_band[0] < self.rope_band[1]:
            raise ValueError(f"rope_band = {self.rope_band}: must be (low, high, context) with 0 <= low < high")
        if self.window_layers is not None:
            if self.window is None:
                raise ValueError(f"window_layers = {self.window_layers}: needs a window")
            if not all(0 <= layer < self.layers for layer in self.window_layers):
                raise ValueError(f"window_layers = {self.window_layers}: blocks are numbered 0 to {self.layers - 1}")

    @property
    def block(self) -> BlockOptions:
        """The options of each block, with all sizes known."""
        gated = -(-8 * self.width // (3 * 64)) * 64
        return BlockOptions(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.head_dim or self.width // self.heads,
            mlp_width=self.mlp_width or (gated if self.activation == "swiglu" else 4 * self.width),
            causal=True,
            norm=self.norm,
            activation=self.activation,
            qk_norm=self.qk_norm,
            biases=self.biases,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            expert_dispatch=self.expert_dispatch,
        )

    def block_at(self, layer: int) -> BlockOptions:
        """The options of one block."""
        windowed = self.window_layers is None or layer in self.window_layers
        return dataclasses.replace(self.block, window=self.window if windowed else None)

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Decoder":
        """The network for token data. Raises ConfigError for other data, ValueError when `context` or `vocab_size` is too small."""
        vocab, length = tokens_of(spec, "transformer")
        if self.context is not None and self.context < length:
            raise ValueError(f"context = {self.context}: must be at least {length}, the tokens in a row of the dataset")
        if self.vocab_size is not None and self.vocab_size < vocab:
            raise ValueError(f"vocab_size = {self.vocab_size}: must be at least {vocab}, the dataset's vocabulary")
        return Decoder(self, vocab, self.context or length, rngs)


class Decoder(nnx.Module):
    """The network of `Transformer`."""

    def __init__(self, options: Transformer, vocab: int, context: int, rngs: nnx.Rngs) -> None:
        o, block = options, options.block
        padded = -(-(o.vocab_size or vocab) // o.vocab_multiple) * o.vocab_multiple
        self.options, self.vocab = o, vocab
        self.tokens = Embedding("vocab", padded, o.width, init=block.init, rngs=rngs)
        learned = o.position == "learned"
        self.positions = Embedding("position", context, o.width, init=block.init, rngs=rngs) if learned else None
        self.blocks = nnx.List([Block(o.block_at(layer), rngs) for layer in range(o.layers)])
        self.norm = make_norm(o.norm, "embed", o.width, epsilon=o.norm_epsilon, bias=block.has_bias("norm"))
        head = {"vocab": padded}
        self.head = None if o.tied_head else Linear({"embed": o.width}, head, init=normal(STD), bias=False, rngs=rngs)

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch seq vocab"]:
        """Logits of the token that follows each position, in the parameters' dtype; see `hidden`."""
        return logits_of(self.hidden(batch, train=train, rngs=rngs), *self.head_kernel())

    def hidden(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch seq width"]:
        """What the head reads, in the parameters' dtype.

        batch: `inputs`, int32 (batch, seq); perhaps `segment_ids`, int32 (batch, seq), 0 for padding: a token attends within its
        segment only; perhaps `positions`, int32 (batch, seq), instead of 0, 1, ... rngs: for dropout, in training.
        """
        inputs, segments = batch["inputs"], batch.get("segment_ids")
        positions = batch["positions"] if "positions" in batch else jnp.arange(inputs.shape[1], dtype=jnp.int32)[None]
        keys = self._dropout_keys(train, rngs)
        x = dropout(self._embedded(inputs, positions), self.options.dropout, keys[0])
        rope = self._rotation(positions)
        for block, key in zip(self.blocks, keys[1:], strict=True):
            further = functools.partial(block, rope=rope, segment_ids=segments)
            x = rematerialised(further, self.options.remat)(x, dropout_key=key)
        return self.norm(x)

    def head_kernel(self) -> tuple[Float[Array, "width columns"], int]:
        """(kernel, vocabulary); see assay_plugins.models.heads."""
        return kernel_of(self.head, self.tokens), self.vocab

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> tuple[Cache, ...]:
        """An empty cache for `length` positions of `batch` rows: keys and values of each layer, in `dtype`."""
        block = self.options.block
        zeros = jnp.zeros((batch, block.kv_heads, length, block.head_dim), dtype)
        return tuple((zeros, zeros) for _ in self.blocks)

    def decode(
        self, tokens: Int[Array, "batch new"], cache: tuple[Cache, ...], position: int | Int[Array, ""]
    ) -> tuple[Float[Array, "batch new vocab"], tuple[Cache, ...]]:
        """Logits after each of `tokens`, at positions [position, position + new), and the cache with them.

        The cache must hold the positions before. A pure function of its arguments: a prompt is one call (prefill), each
        further token another. position + new must not exceed the cache's length; that is not checked.
        """
        positions = (position + jnp.arange(tokens.shape[1], dtype=jnp.int32))[None]
        x, rope = self._embedded(tokens, positions), self._rotation(positions)
        layers = []
        for block, old in zip(self.blocks, cache, strict=True):
            x, new = block.decode(x, old, position, rope=rope)
            layers.append(new)
        return logits_of(self.norm(x), *self.head_kernel()), tuple(layers)

    def _dropout_keys(self, train: bool, rngs: nnx.Rngs | None) -> list[Array | None]:
        """One key for the embedding and one for each block, or None."""
        count = 1 + self.options.layers
        key = dropout_key(self.options.dropout, train, rngs)
        return [None] * count if key is None else list(jax.random.split(key, count))

    def _embedded(self, tokens: Array, positions: Array) -> Array:
        """The residual stream before the first block."""
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        return constrain(x, "batch", "sequence", "act_embed")

    def _rotation(self, positions: Array) -> Rotation | None:
        """Angles for all blocks."""
        if self.options.position != "rope":
            return None
        o = self.options
        return rotation(positions, o.block.head_dim, o.rope_theta, o.rope_scaling, o.rope_band)
