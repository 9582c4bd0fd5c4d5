"""The block of Mamba-2: norm, then the mixer (projections, short convolutions, the recurrence, the gate), added to its input."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.parallel.constrain import constrain
from assay_plugins.models.layers import Linear, RMSNorm, aligned, dropout, standardised
from assay_plugins.models.short_convolution import ShortConvolution, uniform
from assay_plugins.models.ssd import State, ssd, ssd_step

DECAY_RATES = (1.0, 16.0)  # uniform; those and the time steps are the initial values of the paper's code
TIME_STEPS = (1e-3, 1e-1)  # uniform in the logarithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSMOptions:
    """What decides a block; the names are those of the model plugin. layers: blocks in the model, for the initialisation."""

    layers: int
    width: int
    heads: int
    head_dim: int
    state: int
    groups: int
    convolution: int
    chunk: int
    norm_epsilon: float
    dropout: float


class SSMCache(NamedTuple):
    """What one layer keeps of the positions before: the inputs that its convolutions still reach, and the state."""

    x: Float[Array, "batch taps-1 heads head_dim"]
    b: Float[Array, "batch taps-1 groups*state"]
    c: Float[Array, "batch taps-1 groups*state"]
    state: State


class SSMBlock(nnx.Module):
    """x += mixer(norm(x)): one for the attention and the feed-forward of a transformer's block together."""

    def __init__(self, options: SSMOptions, rngs: nnx.Rngs) -> None:
        self.dropout_rate = options.dropout
        self.norm = RMSNorm("embed", options.width, epsilon=options.norm_epsilon)
        self.mixer = SSM(options, rngs)

    def __call__(
        self,
        x: Float[Array, "batch seq width"],
        *,
        runs: Int[Array, "batch seq"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "batch seq width"]:
        """One block further. runs: numbers of the documents in each row (see ssd.runs_of)."""
        mixed, _ = self.mixer(self.norm(x), self.mixer.init_cache(x.shape[0], x.dtype), runs)
        return constrain(x + dropout(mixed, self.dropout_rate, dropout_key), "batch", "sequence", "act_embed")

    def decode(
        self, x: Float[Array, "batch new width"], cache: SSMCache
    ) -> tuple[Float[Array, "batch new width"], SSMCache]:
        """The same for new positions only, which follow those in `cache`."""
        mixed, cache = self.mixer(self.norm(x), cache)
        return x + mixed, cache


class SSM(nnx.Module):
    """The mixer of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060, section 7.1). For its input u, and each head with its scalars:

    z, x, b, c, dt = linear maps of u;  x, b, c = silu(causal convolution) of each;  dt = softplus(dt + dt_bias)
    h_t = exp(-exp(log_rate) dt_t) h_{t-1} + dt_t x_t b_t^T;  y_t = h_t c_t + skip x_t;  result: out(scale * unit(y * silu(z)))

    unit divides by the root mean square over the heads of a group, which share b and c.
    """

    def __init__(self, options: SSMOptions, rngs: nnx.Rngs) -> None:
        o = self.options = options
        embed, inner, shared = {"embed": o.width}, {"heads": o.heads, "head_dim": o.head_dim}, o.groups * o.state
        # The state's width is no width of a head, but that name says what is right: no layout divides it.
        outputs = {
            "z": inner,
            "x": inner,
            "b": {"head_dim": shared},
            "c": {"head_dim": shared},
            "dt": {"heads": o.heads},
        }
        into, out = uniform(o.width), uniform(o.heads * o.head_dim * o.layers)
        self.z, self.x, self.b, self.c, self.dt = (
            Linear(embed, sizes, init=into, bias=False, rngs=rngs) for sizes in outputs.values()
        )
        self.x_convolution, self.b_convolution, self.c_convolution = (
            ShortConvolution(o.convolution, outputs[name], rngs) for name in "xbc"
        )
        self.dt_bias = nnx.Param(_time_step_bias(rngs.params(), o.heads), axes=("heads",))
        low, high = DECAY_RATES
        rates = jax.random.uniform(rngs.params(), (o.heads,), jnp.float32, low, high)
        self.log_rate = nnx.Param(jnp.log(rates), axes=("heads",))
        self.skip = nnx.Param(jnp.ones((o.heads,), jnp.float32), axes=("heads",))
        self.scale = nnx.Param(jnp.ones((o.heads, o.head_dim), jnp.float32), axes=("heads", "head_dim"))
        self.out = Linear(inner, embed, init=out, bias=False, rngs=rngs)

    def init_cache(self, batch: int, dtype: jnp.dtype) -> SSMCache:
        """The cache before the first position: zeros, the state's fp32."""
        o, shared = self.options, self.options.groups * self.options.state
        before = (batch, o.convolution - 1)
        x, b = jnp.zeros((*before, o.heads, o.head_dim), dtype), jnp.zeros((*before, shared), dtype)
        return SSMCache(x, b, b, jnp.zeros((batch, o.heads, o.head_dim, o.state), jnp.float32))

    def __call__(
        self, u: Float[Array, "batch seq width"], cache: SSMCache, runs: Int[Array, "batch seq"] | None = None
    ) -> tuple[Float[Array, "batch seq width"], SSMCache]:
        """(result, cache after the last position) for positions that follow those in `cache`. One position is a step of the recurrence."""
        x, b, c = self.x(u), self.b(u), self.c(u)
        x = constrain(x, "batch", "sequence", "act_heads", None)
        windows = [_last(old, new) for old, new in zip(cache[:3], (x, b, c), strict=True)]
        x = self.x_convolution(x, cache.x, runs)
        b, c = (
            convolution(part, before, runs).reshape(*u.shape[:2], self.options.groups, self.options.state)
            for convolution, part, before in ((self.b_convolution, b, cache.b), (self.c_convolution, c, cache.c))
        )
        y, state = self._recurrence(x, self._time_steps(u), b, c, cache.state, runs)
        y = self._gated(y + x * aligned(self.skip[..., None], 4), self.z(u))
        return self.out(constrain(y, "batch", "sequence", "act_heads", None)), SSMCache(
            windows[0], windows[1], windows[2], state
        )

    def _time_steps(self, u: Array) -> Float[Array, "batch seq heads"]:
        """dt, fp32."""
        return jax.nn.softplus(self.dt(u).astype(jnp.float32) + aligned(self.dt_bias[...].astype(jnp.float32), 3))

    def _recurrence(
        self, x: Array, dt: Array, b: Array, c: Array, state: State, runs: Array | None
    ) -> tuple[Array, State]:
        """(y without the skip, the state after the last position)."""
        log_decay = -aligned(jnp.exp(self.log_rate[...].astype(jnp.float32)), 3) * dt
        x = (x * dt[..., None]).astype(x.dtype)
        if x.shape[1] != 1:  # true of a symbolic length as well, which is not known to be more
            return ssd(x, log_decay, b, c, chunk=self.options.chunk, runs=runs, state=state)
        y, state = ssd_step(x[:, 0], log_decay[:, 0], b[:, 0], c[:, 0], state)
        return y[:, None], state

    def _gated(self, y: Array, z: Array) -> Array:
        """scale * unit(y * silu(z)), statistics in fp32."""
        wide = (y * jax.nn.silu(z)).astype(jnp.float32).reshape(*y.shape[:2], self.options.groups, -1)
        unit = standardised(wide, self.options.norm_epsilon, False).reshape(y.shape)
        return unit.astype(y.dtype) * aligned(self.scale[...], 4)


def _time_step_bias(key: Array, heads: int) -> Float[Array, " heads"]:
    """The inverse of softplus at time steps between TIME_STEPS."""
    low, high = map(math.log, TIME_STEPS)
    steps = jnp.exp(jax.random.uniform(key, (heads,), jnp.float32, low, high))
    return steps + jnp.log(-jnp.expm1(-steps))


def _last(old: Array, new: Array) -> Array:
    """The last positions of `old` and `new` together, as many as `old` has."""
    return jnp.concatenate([old, new.astype(old.dtype)], axis=1)[:, new.shape[1] :]
