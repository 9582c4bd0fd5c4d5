"""A language model of Mamba-2 blocks: the transformer's place, with a state of fixed size instead of keys and values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_kernels.linear_scan import runs_of
from assay_plugins.models.block import STD
from assay_plugins.models.checks import at_least, divides, fraction
from assay_plugins.models.heads import kernel_of, logits_of
from assay_plugins.models.layers import Embedding, Linear, RMSNorm, dropout, dropout_key, normal
from assay_plugins.models.remat import Remat, rematerialised
from assay_plugins.models.specs import tokens_of
from assay_plugins.models.ssm import SSMBlock, SSMCache, SSMOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2:
    """Dao and Gu 2024 (arXiv:2405.21060). Reads `inputs`, and `segment_ids` where the dataset packs documents: each begins with state 0.

    layers: blocks; each is about half of a transformer's block of the same width. width: of the residual stream.
    heads: of the recurrence. head_dim: width of one; None for 2 width / heads. state: columns of each head's state.
    groups: sets of input and output maps of the state, each shared by heads / groups consecutive heads, and of the last norm.
    convolution: positions that the short convolution reaches, its own included.
    chunk: positions that are computed together; it changes speed and memory, and no value beyond rounding.
    norm_epsilon: of all RMSNorms. tied_head: the head is the embedding.
    dropout: rate after the embedding and at the end of each block, in training.
    vocab_multiple: the vocabulary is padded to a multiple of this, so that devices can divide it; padding has logit -1e30.
    remat: what the backward pass computes again (see assay_plugins.models.remat).
    """

    layers: int
    width: int
    heads: int
    head_dim: int | None = None
    state: int = 128
    groups: int = 1
    convolution: int = 4
    chunk: int = 64
    norm_epsilon: float = 1e-5
    tied_head: bool = False
    dropout: float = 0.0
    vocab_multiple: int = 1
    remat: Remat = "none"

    def __post_init__(self) -> None:
        """Raise ValueError for sizes out of range or that do not divide one another."""
        at_least(1, layers=self.layers, width=self.width, heads=self.heads, head_dim=self.head_dim, state=self.state)
        at_least(1, groups=self.groups, convolution=self.convolution, chunk=self.chunk)
        at_least(1, vocab_multiple=self.vocab_multiple)
        fraction("dropout", self.dropout)
        divides("groups", self.groups, "heads", self.heads)
        if self.head_dim is None:
            divides("heads", self.heads, "2 width", 2 * self.width, "or set head_dim")

    @property
    def block(self) -> SSMOptions:
        """The options of each block, with all sizes known."""
        return SSMOptions(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            head_dim=self.head_dim or 2 * self.width // self.heads,
            state=self.state,
            groups=self.groups,
            convolution=self.convolution,
            chunk=self.chunk,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
        )

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "StateSpaceDecoder":
        """The network for token data. Raises ConfigError for other data."""
        return StateSpaceDecoder(self, tokens_of(spec, "mamba2")[0], rngs)


class StateSpaceDecoder(nnx.Module):
    """The network of `Mamba2`."""

    def __init__(self, options: Mamba2, vocab: int, rngs: nnx.Rngs) -> None:
        o, init = options, normal(STD)
        padded = -(-vocab // o.vocab_multiple) * o.vocab_multiple
        self.options, self.vocab = o, vocab
        self.tokens = Embedding("vocab", padded, o.width, init=init, rngs=rngs)
        self.blocks = nnx.List([SSMBlock(o.block, rngs) for _ in range(o.layers)])
        self.norm = RMSNorm("embed", o.width, epsilon=o.norm_epsilon)
        head = {"vocab": padded}
        self.head = None if o.tied_head else Linear({"embed": o.width}, head, init=init, bias=False, rngs=rngs)

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch seq vocab"]:
        """Logits of the token that follows each position, in the parameters' dtype; see `hidden`."""
        return logits_of(self.hidden(batch, train=train, rngs=rngs), *self.head_kernel())

    def hidden(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch seq width"]:
        """What the head reads, in the parameters' dtype.

        batch: `inputs`, int32 (batch, seq); perhaps `segment_ids`, int32 (batch, seq): a new segment begins where the id changes,
        and nothing passes from one to the next. rngs: for dropout, in training.
        """
        runs = runs_of(batch["segment_ids"]) if "segment_ids" in batch else None
        key = dropout_key(self.options.dropout, train, rngs)
        count = 1 + self.options.layers
        keys = [None] * count if key is None else list(jax.random.split(key, count))
        x = dropout(self._embedded(batch["inputs"]), self.options.dropout, keys[0])
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            further = functools.partial(block, runs=runs)
            x = rematerialised(further, self.options.remat)(x, dropout_key=block_key)
        return self.norm(x)

    def head_kernel(self) -> tuple[Float[Array, "width columns"], int]:
        """(kernel, vocabulary); see assay_plugins.models.heads."""
        return kernel_of(self.head, self.tokens), self.vocab

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> tuple[SSMCache, ...]:
        """The cache of each layer before the first position of `batch` rows, in `dtype`, states in fp32; the same for any `length`."""
        return tuple(block.mixer.init_cache(batch, dtype) for block in self.blocks)

    def decode(
        self, tokens: Int[Array, "batch new"], cache: tuple[SSMCache, ...], position: int | Int[Array, ""]
    ) -> tuple[Float[Array, "batch new vocab"], tuple[SSMCache, ...]]:
        """Logits after each of `tokens`, which follow those that the cache has seen, and the cache with them.

        A pure function of its arguments: a prompt is one call (prefill), each further token another, of the same cost.
        `position`, the number of tokens before, is in the cache already; it is taken for the sake of models that need it.
        """
        x, layers = self._embedded(tokens), []
        for block, old in zip(self.blocks, cache, strict=True):
            x, new = block.decode(x, old)
            layers.append(new)
        return logits_of(self.norm(x), *self.head_kernel()), tuple(layers)

    def _embedded(self, tokens: Array) -> Array:
        """The residual stream before the first block."""
        return constrain(self.tokens(tokens), "batch", "sequence", "act_embed")
