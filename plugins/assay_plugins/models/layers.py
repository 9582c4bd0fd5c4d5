"""Small layers whose parameters carry logical axis names: dense, embedding, the two norms, dropout, activations.

Each computes in the dtype of its parameters, except for statistics, which are fp32. No layer stores random state.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.parallel.per_device import Axes, per_device
from assay_kernels.rms_norm import normalised, rms_norm

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]
Norm = Literal["rmsnorm", "layernorm"]


def normal(std: float) -> Initializer:
    """Draws from N(0, std^2)."""
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


class Linear(nnx.Module):
    """A linear map between two groups of dimensions, each given as {logical axis: size}; plus a bias, if asked for.

    kernel: (*inputs, *outputs). bias: (*outputs), 0 at first.
    """

    def __init__(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], *, init: Initializer, bias: bool, rngs: nnx.Rngs
    ) -> None:
        shape = (*inputs.values(), *outputs.values())
        self.inputs = len(inputs)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32), axes=(*inputs, *outputs))
        zeros = jnp.zeros(tuple(outputs.values()), jnp.float32)
        self.bias = nnx.Param(zeros, axes=tuple(outputs)) if bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x: (..., *inputs) -> (..., *outputs)."""
        kernel = self.kernel[...]
        inputs, outputs = kernel.shape[: self.inputs], kernel.shape[self.inputs :]
        lead = x.shape[: x.ndim - self.inputs]
        y = flat_product(x.reshape(*lead, math.prod(inputs)), kernel.reshape(math.prod(inputs), math.prod(outputs)))
        y = y.reshape(*lead, *outputs)
        return y if self.bias is None else y + aligned(self.bias[...], y.ndim)


class Embedding(nnx.Module):
    """A table with one row for each id. embedding: (count, width)."""

    def __init__(self, axis: str, count: int, width: int, *, init: Initializer, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(init(rngs.params(), (count, width), jnp.float32), axes=(axis, "embed"))

    def __call__(self, ids: Int[Array, "*items"]) -> Float[Array, "*items width"]:
        """The rows of `ids`, which must lie in [0, count)."""
        return self.embedding[...].at[ids].get(mode="clip")

    def attend(self, x: Float[Array, "*items width"]) -> Float[Array, "*items count"]:
        """Inner products with every row: the output head of a model with a tied embedding."""
        return flat_product(x, self.embedding[...].T)


class RMSNorm(nnx.Module):
    """scale * x / sqrt(mean(x^2) + epsilon) over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    def __init__(self, axis: str | None, width: int, *, epsilon: float) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=(axis,))

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """x, normalised; same shape and dtype."""
        axes: Axes = (*("batch", "sequence", "act_heads")[: x.ndim - 1], None)
        norm = per_device(functools.partial(rms_norm, eps=self.epsilon), [axes, None], axes)
        y: Array = norm(x, self.scale[...])
        return y


class LayerNorm(nnx.Module):
    """scale * (x - mean) / sqrt(variance + epsilon) [+ bias] over the last dimension (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, axis: str | None, width: int, *, epsilon: float, bias: bool) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=(axis,))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32), axes=(axis,)) if bias else None

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """x, normalised; same shape and dtype."""
        unit = standardised(x.astype(jnp.float32), self.epsilon, True)
        y = unit.astype(x.dtype) * aligned(self.scale[...], x.ndim)
        return y if self.bias is None else y + aligned(self.bias[...], x.ndim)


def make_norm(kind: Norm, axis: str | None, width: int, *, epsilon: float, bias: bool) -> RMSNorm | LayerNorm:
    """The norm called `kind` over a dimension `axis` of `width`; RMSNorm never has a bias."""
    if kind == "rmsnorm":
        return RMSNorm(axis, width, epsilon=epsilon)
    return LayerNorm(axis, width, epsilon=epsilon, bias=bias)


def standardised(x: Float[Array, "... width"], epsilon: float, centred: bool) -> Float[Array, "... width"]:
    """x / sqrt(mean(x^2) + epsilon) over the last dimension, after taking away its mean if `centred`."""
    y: Array = _centred(x, epsilon) if centred else normalised(x, epsilon)
    return y


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _centred(x: Array, epsilon: float) -> Array:
    """(x - mean(x)) / sqrt(variance + epsilon), with its derivative in closed form, as that of assay_kernels' `normalised`."""
    return _centred_and_factor(x, epsilon)[0]


@_centred.defjvp
def _centred_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """(value, directional derivative)."""
    (x,), (dx,) = primals, tangents
    unit, factor = _centred_and_factor(x, epsilon)
    # unit has mean 0, so both means are of dx itself: the transpose then needs one pass over the cotangent.
    along = unit * jnp.mean(unit * dx, axis=-1, keepdims=True) + jnp.mean(dx, axis=-1, keepdims=True)
    return unit, factor * (dx - along)


def _centred_and_factor(x: Array, epsilon: float) -> tuple[Array, Array]:
    """(the value, 1 / sqrt(...))."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return x * factor, factor


def flat_product(x: Float[Array, "*items n"], kernel: Float[Array, "n m"]) -> Float[Array, "*items m"]:
    """`x @ kernel` as a product of two matrices: with more dimensions XLA's CPU code for it and its gradients is slower."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), Phi the standard normal distribution function (Hendrycks and Gimpel 2016, arXiv:1606.08415), exact."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def dropout(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Each element 0 with probability `rate`, else x / (1 - rate); `x` itself without a key (Srivastava et al. 2014)."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0).astype(x.dtype)


def dropout_key(rate: float, train: bool, rngs: nnx.Rngs | None) -> Array | None:
    """A key for `dropout` where it is to happen: in training, with a rate above 0; None otherwise."""
    if not train or rate == 0.0:
        return None
    if rngs is None:
        raise ValueError(f"dropout = {rate}: a call with train=True needs rngs")
    return rngs.dropout()


def aligned(x: Float[Array, "..."], ndim: int) -> Float[Array, "..."]:
    """`x` with leading dimensions of size 1 up to `ndim`: numpy's broadcasting, which strict rank promotion forbids."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)
