"""A mixture of experts in the place of the feed-forward: each token through the few SwiGLU networks that a router chooses."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.parallel.constrain import constrain
from assay_plugins.models.layers import Initializer, flat_product


class Experts(nnx.Module):
    """sum over the chosen experts e of share_e down_e(silu(gate_e(x)) * up_e(x)) (Jiang et al. 2024, arXiv:2401.04088, section 2.1).

    The `chosen` experts with the highest router scores share 1 by the softmax of their scores. Kernels are (experts, in, out).

    Every expert is computed for every token and the others get share 0: exact, divisible over devices as a dense feed-forward is,
    and experts / chosen times the arithmetic that routing would need. There is no loss that balances the experts' load.
    """

    def __init__(
        self,
        *,
        width: int,
        mlp_width: int,
        experts: int,
        chosen: int,
        init: Initializer,
        out_init: Initializer,
        rngs: nnx.Rngs,
    ) -> None:
        self.chosen = chosen
        draw, up, down, fp32 = (
            rngs.params,
            (experts, width, mlp_width),
            (experts, mlp_width, width),
            jnp.dtype("float32"),
        )
        self.router = nnx.Param(init(draw(), (width, experts), fp32), axes=("embed", None))
        self.gate = nnx.Param(init(draw(), up, fp32), axes=(None, "embed", "mlp"))
        self.up = nnx.Param(init(draw(), up, fp32), axes=(None, "embed", "mlp"))
        self.down = nnx.Param(out_init(draw(), down, fp32), axes=(None, "mlp", "embed"))

    def __call__(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
        """Each position for itself."""
        gate, up = (jnp.einsum("bsw,ewm->bsem", x, kernel[...]) for kernel in (self.gate, self.up))
        hidden = jax.nn.silu(gate) * up * self.shares(x)[..., None].astype(x.dtype)
        return jnp.einsum("bsem,emw->bsw", constrain(hidden, "batch", "sequence", None, "act_mlp"), self.down[...])

    def shares(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq experts"]:
        """What each expert contributes to each position, fp32; `chosen` of them are above 0, and their sum is 1."""
        scores = flat_product(x, self.router[...]).astype(jnp.float32)
        best, which = jax.lax.top_k(scores, self.chosen)
        chosen = jax.nn.one_hot(which, scores.shape[-1], dtype=jnp.float32)
        return jnp.einsum("bsk,bske->bse", jax.nn.softmax(best, axis=-1), chosen)
