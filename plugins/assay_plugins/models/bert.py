"""BERT: a bidirectional encoder of token data, with a head for masked tokens or for classes."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.attention import Attention
from assay_plugins.models.block import BlockOptions, FeedForward
from assay_plugins.models.checks import at_least, divides, fraction
from assay_plugins.models.layers import Embedding, Linear, dropout, dropout_key, gelu, make_norm
from assay_plugins.models.specs import tokens_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class BERT:
    """Devlin et al. 2019 (arXiv:1810.04805): blocks with the norm after each branch. Reads `inputs`, `segment_ids` and `token_types`.

    layers: blocks. width: of the residual stream. heads: of attention. mlp_width: hidden width of the feed-forward; None for 4 width.
    context: number of learned positions; None for the dataset's row length. token_types: kinds of token, such as two sentences.
    head: tokens, a score for each token of the vocabulary at each position, by the embedding; classes, a score for each label from
        the first position.
    activation: gelu is exact. norm_epsilon: of LayerNorm.
    dropout: rate after the embedding, in the attention weights and at the end of each branch, in training.
    """

    layers: int
    width: int
    heads: int
    mlp_width: int | None = None
    context: int | None = None
    token_types: int = 2
    head: Literal["tokens", "classes"] = "tokens"
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    norm_epsilon: float = 1e-12
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for sizes out of range or that do not divide one another."""
        at_least(1, layers=self.layers, width=self.width, heads=self.heads, mlp_width=self.mlp_width)
        at_least(1, context=self.context, token_types=self.token_types)
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
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
        )

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Encoder":
        """The network for token data. Raises ConfigError for other data, ValueError when `context` is less than its rows."""
        vocab, length = tokens_of(spec, "bert")
        if self.context is not None and self.context < length:
            raise ValueError(f"context = {self.context}: must be at least {length}, the tokens in a row of the dataset")
        if self.head == "tokens":
            return Encoder(self, vocab, self.context or length, TokenHead(self, vocab, rngs), rngs)
        if spec.num_classes is None:
            raise ConfigError("model.bert with head = 'classes' needs a dataset with labels; this one has none")
        return Encoder(self, vocab, self.context or length, ClassHead(self, spec.num_classes, rngs), rngs)


class Encoder(nnx.Module):
    """The network of `BERT`."""

    def __init__(self, options: BERT, vocab: int, context: int, head: "TokenHead | ClassHead", rngs: nnx.Rngs) -> None:
        o, init = options, options.block.init
        self.options = o
        self.tokens = Embedding("vocab", vocab, o.width, init=init, rngs=rngs)
        self.positions = Embedding("position", context, o.width, init=init, rngs=rngs)
        self.types = Embedding("position", o.token_types, o.width, init=init, rngs=rngs)
        self.norm = make_norm("layernorm", "embed", o.width, epsilon=o.norm_epsilon, bias=True)
        self.blocks = nnx.List([EncoderBlock(o.block, rngs) for _ in range(o.layers)])
        self.head = head

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch seq vocab"] | Float[Array, "batch classes"]:
        """Scores over tokens or classes, in the parameters' dtype.

        batch: `inputs`, int32 (batch, seq); perhaps `segment_ids`, int32 (batch, seq), 0 for padding: a token attends within its
        segment only; perhaps `positions` and `token_types`, int32 (batch, seq), instead of 0, 1, … and of 0. rngs: for dropout.
        """
        rate, count = self.options.dropout, 1 + self.options.layers
        key = dropout_key(rate, train, rngs)
        keys = [None] * count if key is None else list(jax.random.split(key, count))
        x = dropout(self._embedded(batch), rate, keys[0])
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, segment_ids=batch.get("segment_ids"), dropout_key=block_key)
        return self.head(x, self.tokens)

    def _embedded(self, batch: Batch) -> Array:
        """The normalised sum of the three embeddings."""
        inputs = batch["inputs"]
        positions = batch["positions"] if "positions" in batch else jnp.arange(inputs.shape[1], dtype=jnp.int32)[None]
        types = batch["token_types"] if "token_types" in batch else jnp.zeros((1, 1), jnp.int32)
        x = self.tokens(inputs) + self.positions(positions) + self.types(types)
        return constrain(self.norm(x), "batch", "sequence", "act_embed")


class EncoderBlock(nnx.Module):
    """x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, options: BlockOptions, rngs: nnx.Rngs) -> None:
        o = options
        self.dropout_rate = o.dropout
        self.attention = Attention(
            width=o.width,
            heads=o.heads,
            kv_heads=o.kv_heads,
            head_dim=o.head_dim,
            causal=False,
            biases=True,
            qk_norm=None,
            norm_epsilon=o.norm_epsilon,
            dropout_rate=o.dropout,
            init=o.init,
            out_init=o.init,
            rngs=rngs,
        )
        self.attention_norm = make_norm("layernorm", "embed", o.width, epsilon=o.norm_epsilon, bias=True)
        self.mlp = FeedForward(o, rngs)
        self.mlp_norm = make_norm("layernorm", "embed", o.width, epsilon=o.norm_epsilon, bias=True)

    def __call__(
        self,
        x: Float[Array, "batch seq width"],
        *,
        segment_ids: Int[Array, "batch seq"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "batch seq width"]:
        """One block further."""
        keys = (None,) * 3 if dropout_key is None else tuple(jax.random.split(dropout_key, 3))
        mixed = self.attention(x, segment_ids=segment_ids, dropout_key=keys[0])
        x = self.attention_norm(x + dropout(mixed, self.dropout_rate, keys[1]))
        x = self.mlp_norm(x + dropout(self.mlp(x), self.dropout_rate, keys[2]))
        return constrain(x, "batch", "sequence", "act_embed")


class TokenHead(nnx.Module):
    """tokens norm(gelu(transform(x))) + bias, tokens being the embedding."""

    def __init__(self, options: BERT, vocab: int, rngs: nnx.Rngs) -> None:
        o = options
        self.exact = o.activation == "gelu"
        self.transform = Linear({"embed": o.width}, {"mlp": o.width}, init=o.block.init, bias=True, rngs=rngs)
        self.norm = make_norm("layernorm", "embed", o.width, epsilon=o.norm_epsilon, bias=True)
        self.bias = nnx.Param(jnp.zeros((vocab,), jnp.float32), axes=("vocab",))

    def __call__(self, x: Float[Array, "batch seq width"], tokens: Embedding) -> Float[Array, "batch seq vocab"]:
        """Scores at each position."""
        x = self.transform(x)
        x = self.norm(gelu(x) if self.exact else jax.nn.gelu(x, approximate=True))
        return constrain(tokens.attend(x) + self.bias[...][None, None], "batch", "sequence", "act_vocab")


class ClassHead(nnx.Module):
    """classifier(tanh(pooler(x of the first position)))."""

    def __init__(self, options: BERT, classes: int, rngs: nnx.Rngs) -> None:
        width, init = options.width, options.block.init
        self.pooler = Linear({"embed": width}, {"mlp": width}, init=init, bias=True, rngs=rngs)
        self.classifier = Linear({"mlp": width}, {"classes": classes}, init=init, bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "batch seq width"], tokens: Embedding) -> Float[Array, "batch classes"]:
        """Scores of each row."""
        return self.classifier(jnp.tanh(self.pooler(x[:, 0])))
