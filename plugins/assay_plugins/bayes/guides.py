"""Families of approximate posteriors over unconstrained values, as NNX modules whose parameters are trained and placed like any other."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay_plugins.bayes.density import Position

Family = Literal["normal", "multivariate_normal", "delta"]
Shapes = Mapping[str, tuple[int, ...]]
Axes = Mapping[str, tuple[str | None, ...]]
HALF_LOG_TWO_PI = 0.9189385332046727


def make_guide(family: Family, shapes: Shapes, axes: Axes, *, radius: float, scale: float, rngs: nnx.Rngs) -> "Guide":
    """The guide for latent sites of `shapes`; locations begin uniform in [-radius, radius], standard deviations at `scale`."""
    start = {
        name: jax.random.uniform(rngs.params(), shape, jnp.float32, -radius, radius) for name, shape in shapes.items()
    }
    names = {name: axes.get(name, (None,) * len(shape)) for name, shape in shapes.items()}
    if family == "delta":
        return Delta(start, names)
    return Normal(start, names, scale) if family == "normal" else MultivariateNormal(start, scale)


class Delta(nnx.Module):
    """A point. Its entropy is left out: it is the same, if infinite, wherever the point is."""

    def __init__(self, start: Position, axes: Axes) -> None:
        self.location = nnx.Dict({name: nnx.Param(value, axes=axes[name]) for name, value in start.items()})

    def draw(self, key: Array) -> tuple[Position, Float[Array, ""]]:
        """(the point, 0)."""
        return {name: _fp32(value) for name, value in self.location.items()}, jnp.zeros(())


class Normal(nnx.Module):
    """Independent normals: q(u) = prod N(u_i; location_i, exp(log_scale_i)^2) (Kucukelbir et al. 2017, arXiv:1603.00788, section 2.4)."""

    def __init__(self, start: Position, axes: Axes, scale: float) -> None:
        self.location = nnx.Dict({name: nnx.Param(value, axes=axes[name]) for name, value in start.items()})
        self.log_scale = nnx.Dict(
            {name: nnx.Param(jnp.full_like(value, jnp.log(scale)), axes=axes[name]) for name, value in start.items()}
        )

    def draw(self, key: Array) -> tuple[Position, Float[Array, ""]]:
        """(u = location + exp(log_scale) noise, log q(u))."""
        position, log_q = {}, jnp.zeros(())
        for i, name in enumerate(self.location):
            location, log_scale = _fp32(self.location[name]), _fp32(self.log_scale[name])
            noise = jax.random.normal(jax.random.fold_in(key, i), location.shape)
            position[name] = location + jnp.exp(log_scale) * noise
            log_q -= jnp.sum(0.5 * jnp.square(noise) + log_scale + HALF_LOG_TWO_PI)
        return position, log_q


class MultivariateNormal(nnx.Module):
    """One normal with a full covariance over all sites, flattened: u = location + L noise (arXiv:1603.00788, section 2.4).

    L = diag(exp(log_scale)) (1 + strictly lower triangle of `lower`), so that log |L| = sum log_scale. The parameters are not
    divided over devices: the covariance joins all sites.
    """

    def __init__(self, start: Position, scale: float) -> None:
        shapes = {name: value.shape for name, value in start.items()}
        self.shapes = tuple(shapes.items())
        location = jnp.concatenate([value.reshape(-1) for value in start.values()])
        self.location = nnx.Param(location, axes=(None,))
        self.log_scale = nnx.Param(jnp.full_like(location, jnp.log(scale)), axes=(None,))
        self.lower = nnx.Param(jnp.zeros((location.size, location.size), jnp.float32), axes=(None, None))

    def draw(self, key: Array) -> tuple[Position, Float[Array, ""]]:
        """(u, log q(u))."""
        location, log_scale, lower = _fp32(self.location), _fp32(self.log_scale), _fp32(self.lower)
        noise = jax.random.normal(key, location.shape)
        flat = location + jnp.exp(log_scale) * (noise + jnp.tril(lower, -1) @ noise)
        log_q = -jnp.sum(0.5 * jnp.square(noise) + log_scale + HALF_LOG_TWO_PI)
        position, start = {}, 0
        for name, shape in self.shapes:
            size = 1
            for side in shape:
                size *= side
            position[name] = flat[start : start + size].reshape(shape)
            start += size
        return position, log_q


Guide = Delta | Normal | MultivariateNormal


def _fp32(parameter: nnx.Param[Array]) -> Array:
    """In fp32: a density differs between points that bf16 takes for one."""
    return parameter[...].astype(jnp.float32)
