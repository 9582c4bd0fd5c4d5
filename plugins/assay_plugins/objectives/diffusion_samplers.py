"""The equations of diffusion's forward process and of one step of each sampler, as pure functions of arrays."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Schedule = Literal["linear", "cosine"]
_MOST_BETA = 0.999


@functools.lru_cache(maxsize=16)
def alpha_bars(schedule: Schedule, timesteps: int) -> Float[np.ndarray, " timesteps+1"]:
    """prod of 1 - beta_s for s up to t, at t = 0 (where it is 1) to `timesteps`; float64.

    linear: beta from 1e-4 to 0.02 at 1,000 timesteps (Ho et al. 2020, arXiv:2006.11239, section 4), larger as there are fewer.
    cosine: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, with beta at most 0.999.
    """
    if schedule == "linear":
        scale = 1000 / timesteps
        betas = np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, timesteps), _MOST_BETA)
    else:
        f = [math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(timesteps + 1)]
        betas = np.asarray([min(1 - after / before, _MOST_BETA) for before, after in itertools.pairwise(f)])
    return np.concatenate([[1.0], np.cumprod(1.0 - betas)])


def diffused(clean: Array, noise: Array, alpha_bar: Array) -> Array:
    """A draw from q(x_t | x_0) = N(sqrt(alpha_bar) x_0, 1 - alpha_bar) (Ho et al. 2020, eq. 4); noise: from N(0, 1)."""
    return jnp.sqrt(alpha_bar) * clean + jnp.sqrt(1.0 - alpha_bar) * noise


def clean_of(x: Array, noise: Array, alpha_bar: Array) -> Array:
    """x_0 from x_t and the noise in it (Ho et al. 2020, eq. 15)."""
    return (x - jnp.sqrt(1.0 - alpha_bar) * noise) / jnp.sqrt(alpha_bar)


def posterior(
    clean: Array, x: Array, alpha_bar: Float[Array, ""], earlier: Float[Array, ""]
) -> tuple[Array, Float[Array, ""]]:
    """(mean, variance) of q(x_s | x_t, x_0) for s before t, alpha_bar at t and `earlier` at s (Ho et al. 2020, eq. 6 and 7)."""
    alpha = alpha_bar / earlier
    of_clean = jnp.sqrt(earlier) * (1.0 - alpha) / (1.0 - alpha_bar)
    of_x = jnp.sqrt(alpha) * (1.0 - earlier) / (1.0 - alpha_bar)
    return of_clean * clean + of_x * x, (1.0 - earlier) / (1.0 - alpha_bar) * (1.0 - alpha)


def ancestral_step(clean: Array, x: Array, alpha_bar: Array, earlier: Array, noise: Array) -> Array:
    """A draw from `posterior` with the predicted clean image in place of the true one (Ho et al. 2020, algorithm 2)."""
    mean, variance = posterior(clean, x, alpha_bar, earlier)
    return mean + jnp.sqrt(variance) * noise


def ddim_step(clean: Array, x: Array, alpha_bar: Array, earlier: Array, noise: Array, eta: float) -> Array:
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16. eta: 0 adds no noise, 1 is the ancestral step."""
    predicted = (x - jnp.sqrt(alpha_bar) * clean) / jnp.sqrt(1.0 - alpha_bar)
    sigma = ddim_sigma(alpha_bar, earlier, eta)
    kept = jnp.sqrt(jnp.maximum(1.0 - earlier - jnp.square(sigma), 0.0))
    return jnp.sqrt(earlier) * clean + kept * predicted + sigma * noise


def ddim_sigma(alpha_bar: Float[Array, ""], earlier: Float[Array, ""], eta: float) -> Float[Array, ""]:
    """The standard deviation of the noise that a step of DDIM adds (Song et al. 2021, eq. 16)."""
    return eta * jnp.sqrt((1.0 - earlier) / (1.0 - alpha_bar)) * jnp.sqrt(1.0 - alpha_bar / earlier)


def karras_sigmas(steps: int, least: float, most: float, rho: float) -> Float[np.ndarray, " steps+1"]:
    """Noise levels of a sample from `most` to `least`, then 0 (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    share = np.linspace(0.0, 1.0, steps) if steps > 1 else np.zeros(1)
    levels = (most ** (1 / rho) + share * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    return np.append(levels, 0.0)


def heun_step(
    denoise: Callable[[Array, Array], Array], x: Array, sigma: Array, following: Array, *, last: bool
) -> Array:
    """A step of Heun's method along dx / dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, algorithm 1).

    last: to sigma 0, where the slope is not known: a step of Euler's method.
    """
    slope = (x - denoise(x, sigma)) / sigma
    euler = x + (following - sigma) * slope
    if last:
        return euler
    after = (euler - denoise(euler, following)) / following
    return x + (following - sigma) * 0.5 * (slope + after)
