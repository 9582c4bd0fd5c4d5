"""The short causal convolution of state-space models: a function, and the layer with its bias and activation."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay_plugins.models.layers import Initializer, aligned


class ShortConvolution(nnx.Module):
    """silu(causal convolution + bias), each channel for itself. kernel: (taps, *channels); bias: (*channels), 0 at first."""

    def __init__(self, taps: int, channels: Mapping[str, int], rngs: nnx.Rngs) -> None:
        sizes = tuple(channels.values())
        kernel = uniform(taps)(rngs.params(), (taps, *sizes), jnp.dtype(jnp.float32))
        self.kernel = nnx.Param(kernel, axes=(None, *channels))
        self.bias = nnx.Param(jnp.zeros(sizes, jnp.float32), axes=tuple(channels))

    def __call__(
        self, x: Float[Array, "batch seq *channels"], before: Float[Array, "batch taps-1 *channels"], runs: Array | None
    ) -> Float[Array, "batch seq *channels"]:
        """before, runs: as `causal_convolution` has them."""
        return jax.nn.silu(causal_convolution(x, self.kernel[...], before, runs) + aligned(self.bias[...], x.ndim))


def causal_convolution(
    x: Float[Array, "batch seq *channels"],
    kernel: Float[Array, "taps *channels"],
    before: Float[Array, "batch taps-1 *channels"],
    runs: Int[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq *channels"]:
    """y_t = sum over k of kernel_k x_{t - taps + 1 + k}, each channel for itself; nothing comes from another run.

    before: the positions that precede x; they belong to its first run. A sum of shifted arrays fuses into one pass on every
    backend, where XLA's own grouped convolution is slow on CPU.
    """
    taps, seq = kernel.shape[0], x.shape[1]
    padded = jnp.concatenate([before.astype(x.dtype), x], axis=1)
    parts = [padded[:, k : k + seq] for k in range(taps)]
    if runs is not None:
        places = jnp.pad(runs, ((0, 0), (taps - 1, 0)), mode="edge")
        same = [(places[:, k : k + seq] == runs).reshape(*runs.shape, *(1,) * (x.ndim - 2)) for k in range(taps)]
        parts = [jnp.where(here, part, 0) for here, part in zip(same, parts, strict=True)]
    return functools.reduce(jnp.add, (part * aligned(kernel[k], x.ndim) for k, part in enumerate(parts)))


def uniform(inputs: int) -> Initializer:
    """Draws from U(-1, 1) / sqrt(inputs), as the paper's code does for maps and convolutions."""
    bound = 1 / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
