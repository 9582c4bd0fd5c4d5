"""The specification of rms_norm in plain jax.numpy, and the derivative that it has in closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of rms_norm. epsilon: added to the mean of squares."""

    epsilon: float = 1e-6


def reference(x: jax.Array, w: jax.Array, residual: jax.Array | None, options: Options) -> tuple[jax.Array, ...]:
    """(y,), or (y, x + residual) where there is a residual. x: (*items, width). w: (width,)."""
    total = x if residual is None else x + residual
    wide = jnp.promote_types(total.dtype, jnp.float32)
    unit = normalised(total.astype(wide), options.epsilon).astype(total.dtype)
    y = unit * w.reshape((1,) * (x.ndim - 1) + w.shape)
    return (y,) if residual is None else (y, total)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def normalised(x: jax.Array, epsilon: float) -> jax.Array:
    """u = x / sqrt(mean(x^2) + epsilon) over the last dimension.

    The derivative is given in closed form, u' = (x' - u mean(u x')) / sqrt(...), which is a few percent of a small model's step faster
    than the chain rule through the mean.
    """
    return _normalised(x, epsilon)[0]


@normalised.defjvp
def _normalised_jvp(
    epsilon: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(value, directional derivative)."""
    (x,), (dx,) = primals, tangents
    unit, factor = _normalised(x, epsilon)
    return unit, factor * (dx - unit * jnp.mean(unit * dx, axis=-1, keepdims=True))


def _normalised(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """(the value, 1 / sqrt(...))."""
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return x * factor, factor
