"""A mixture of experts in the place of the feed-forward: each token through the few SwiGLU networks that a router chooses."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.parallel.constrain import constrain
from assay.parallel.per_device import per_device
from assay_kernels.grouped_matmul import grouped_matmul
from assay_plugins.models.layers import Initializer, flat_product

Dispatch = Literal["dense", "grouped"]


class Experts(nnx.Module):
    """sum over the chosen experts e of share_e down_e(silu(gate_e(x)) * up_e(x)) (Jiang et al. 2024, arXiv:2401.04088, section 2.1).

    The `chosen` experts with the highest router scores share 1 by the softmax of their scores. Kernels are (experts, in, out).

    dispatch: 'dense' computes every expert for every token and gives the others share 0; experts / chosen times the arithmetic.
        'grouped' sorts the tokens by expert and computes what is chosen (Gale et al. 2022, arXiv:2211.15841): no token is dropped, no
        expert has a capacity, and the result differs by rounding. Devices that divide the batch route their own tokens.
    There is no loss that balances the experts' load.
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
        dispatch: Dispatch = "grouped",
    ) -> None:
        self.chosen, self.dispatch = chosen, dispatch
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
        if self.dispatch == "grouped":
            return self._grouped(x)
        gate, up = (jnp.einsum("bsw,ewm->bsem", x, kernel[...]) for kernel in (self.gate, self.up))
        hidden = jax.nn.silu(gate) * up * self.shares(x)[..., None].astype(x.dtype)
        return jnp.einsum("bsem,emw->bsw", constrain(hidden, "batch", "sequence", None, "act_mlp"), self.down[...])

    def shares(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq experts"]:
        """What each expert contributes to each position, fp32; `chosen` of them are above 0, and their sum is 1."""
        best, which = self.choice(x)
        chosen = jax.nn.one_hot(which, self.router.shape[-1], dtype=jnp.float32)
        return jnp.einsum("bsk,bske->bse", best, chosen)

    def choice(
        self, x: Float[Array, "batch seq width"]
    ) -> tuple[Float[Array, "batch seq chosen"], Int[Array, "batch seq chosen"]]:
        """(the shares, fp32, of the experts chosen for each position, the experts)."""
        scores = flat_product(x, self.router[...]).astype(jnp.float32)
        best, which = jax.lax.top_k(scores, self.chosen)
        return jax.nn.softmax(best, axis=-1), which

    def _grouped(self, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
        """Where the hidden width is divided, each device has a part of every product's sum: the first axis of what is added up here."""
        shares, which = self.choice(x)
        rows, up, down = ("batch", "sequence", None), (None, None, "act_mlp"), (None, "act_mlp", None)
        parts = per_device(routed, [rows, rows, rows, up, up, down], ("act_mlp", *rows))(
            x, shares, which, self.gate[...], self.up[...], self.down[...]
        )
        return jnp.sum(parts, axis=0)


def routed(
    x: Float[Array, "batch seq width"],
    shares: Float[Array, "batch seq chosen"],
    which: Int[Array, "batch seq chosen"],
    gate: Float[Array, "experts width mlp"],
    up: Float[Array, "experts width mlp"],
    down: Float[Array, "experts mlp width"],
) -> Float[Array, "1 batch seq width"]:
    """The chosen experts' networks alone, each on its own tokens: rows sorted by expert, three grouped products, rows put back."""
    tokens, chosen = x.reshape(-1, x.shape[-1]), which.shape[-1]
    flat = which.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype), unique_indices=True)
    sizes = jnp.sum(jax.nn.one_hot(flat, gate.shape[0], dtype=jnp.int32), axis=0)
    rows = _taken(tokens, order, place, chosen)
    hidden = jax.nn.silu(grouped_matmul(rows, gate, sizes)) * grouped_matmul(rows, up, sizes)
    result = _taken(grouped_matmul(hidden, down, sizes), place, order, 1)
    mixed = jnp.einsum(
        "tkw,tk->tw",
        result.reshape(-1, chosen, x.shape[-1]),
        shares.reshape(-1, chosen).astype(x.dtype),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return mixed.astype(x.dtype).reshape(1, *x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _taken(x: Array, order: Array, place: Array, copies: int) -> Array:
    """Row order[i] of x with each row `copies` times; place is the inverse of order.

    Its gradient gathers too, where that of indexing would add up in an order that a GPU leaves open.
    """
    return x[order // copies]


def _taken_forward(x: Array, order: Array, place: Array, copies: int) -> tuple[Array, Array]:
    return _taken(x, order, place, copies), place


def _taken_backward(copies: int, place: Array, cotangent: Array) -> tuple[Array, None, None]:
    back = cotangent[place]
    if copies > 1:
        wide = back.reshape(-1, copies, back.shape[-1]).astype(jnp.promote_types(back.dtype, jnp.float32))
        back = jnp.sum(wide, axis=1).astype(back.dtype)
    return back, None, None


_taken.defvjp(_taken_forward, _taken_backward)
