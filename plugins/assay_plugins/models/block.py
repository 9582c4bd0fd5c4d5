"""The transformer block that `transformer` and `vit` share: norm, attention, norm, feed-forward, each added to its input."""

import dataclasses
import math
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.parallel.constrain import constrain
from assay_plugins.models.attention import Attention, Cache
from assay_plugins.models.layers import Initializer, Linear, Norm, dropout, gelu, make_norm, normal
from assay_plugins.models.moe import Dispatch, Experts
from assay_plugins.models.rope import Rotation

Activation = Literal["gelu", "gelu_tanh", "swiglu"]
Place = Literal["qkv", "out", "mlp", "norm"]
Biases = bool | tuple[Place, ...]
STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What decides a block; the names are those of the model plugins. layers: blocks in the model, for the initialisation."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    causal: bool
    norm: Norm = "layernorm"
    activation: Activation = "gelu"
    qk_norm: bool = False
    biases: Biases = True
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    window: int | None = None
    experts: int | None = None
    experts_per_token: int = 2
    expert_dispatch: Dispatch = "grouped"

    def has_bias(self, place: Place) -> bool:
        """Whether the maps, or LayerNorms, of that place have biases."""
        return self.biases if isinstance(self.biases, bool) else place in self.biases

    @property
    def init(self) -> Initializer:
        """N(0, 0.02^2) (Radford et al. 2018, section 4.1)."""
        return normal(STD)

    @property
    def residual_init(self) -> Initializer:
        """That, over sqrt(2 layers), for what is added to the residual stream (Radford et al. 2019, GPT-2, section 2.3)."""
        return normal(STD / math.sqrt(2 * self.layers))


class Block(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, options: BlockOptions, rngs: nnx.Rngs) -> None:
        o = options
        self.dropout_rate = o.dropout
        self.attention_norm = make_norm(o.norm, "embed", o.width, epsilon=o.norm_epsilon, bias=o.has_bias("norm"))
        self.attention = Attention(
            width=o.width,
            heads=o.heads,
            kv_heads=o.kv_heads,
            head_dim=o.head_dim,
            causal=o.causal,
            biases=o.has_bias("qkv"),
            out_bias=o.has_bias("out"),
            window=o.window,
            qk_norm=o.norm if o.qk_norm else None,
            norm_epsilon=o.norm_epsilon,
            dropout_rate=o.dropout,
            init=o.init,
            out_init=o.residual_init,
            rngs=rngs,
        )
        self.mlp_norm = make_norm(o.norm, "embed", o.width, epsilon=o.norm_epsilon, bias=o.has_bias("norm"))
        self.mlp = FeedForward(o, rngs) if o.experts is None else make_experts(o, rngs)

    def __call__(
        self,
        x: Float[Array, "batch seq width"],
        *,
        rope: Rotation | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "batch seq width"]:
        """One block further."""
        keys = (None,) * 3 if dropout_key is None else tuple(jax.random.split(dropout_key, 3))
        mixed = self.attention(self.attention_norm(x), rope=rope, segment_ids=segment_ids, dropout_key=keys[0])
        x = constrain(x + dropout(mixed, self.dropout_rate, keys[1]), "batch", "sequence", "act_embed")
        y = dropout(self.mlp(self.mlp_norm(x)), self.dropout_rate, keys[2])
        return constrain(x + y, "batch", "sequence", "act_embed")

    def decode(
        self,
        x: Float[Array, "batch new width"],
        cache: Cache,
        position: int | Int[Array, ""],
        *,
        rope: Rotation | None = None,
    ) -> tuple[Float[Array, "batch new width"], Cache]:
        """The same for new positions only, with the keys and values of earlier ones in `cache`."""
        mixed, cache = self.attention.decode(self.attention_norm(x), cache, position, rope=rope)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class FeedForward(nnx.Module):
    """down(gelu(up(x))), or down(silu(gate(x)) * up(x)) for SwiGLU (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    def __init__(self, options: BlockOptions, rngs: nnx.Rngs) -> None:
        o = options
        embed, mlp = {"embed": o.width}, {"mlp": o.mlp_width}
        self.activation = o.activation
        gated, bias = o.activation == "swiglu", o.has_bias("mlp")
        self.gate = Linear(embed, mlp, init=o.init, bias=bias, rngs=rngs) if gated else None
        self.up = Linear(embed, mlp, init=o.init, bias=bias, rngs=rngs)
        self.down = Linear(mlp, embed, init=o.residual_init, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
        """Each position for itself."""
        up = self.up(x)
        if self.gate is not None:
            hidden = jax.nn.silu(self.gate(x)) * up
        else:
            hidden = gelu(up) if self.activation == "gelu" else jax.nn.gelu(up, approximate=True)
        return self.down(constrain(hidden, "batch", "sequence", "act_mlp"))


def make_experts(options: BlockOptions, rngs: nnx.Rngs) -> Experts:
    """The mixture of experts of a block that has one."""
    o = options
    return Experts(
        width=o.width,
        mlp_width=o.mlp_width,
        experts=o.experts or 1,
        chosen=o.experts_per_token,
        dispatch=o.expert_dispatch,
        init=o.init,
        out_init=o.residual_init,
        rngs=rngs,
    )
