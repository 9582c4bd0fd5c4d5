"""Diffusion by Karras et al.: a preconditioned denoiser, noise of log-normal strength, and Heun's method for samples."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from assay_plugins.objectives.diffusion import Diffusion, Task
from assay_plugins.objectives.diffusion_samplers import heun_step, karras_sigmas


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(Diffusion):
    """Karras et al. 2022 (arXiv:2206.00364): D(x, sigma) = c_skip x + c_out network(c_in x, c_noise), eq. 7, table 1.

    The loss is lambda(sigma) |D(y + n, sigma) - y|^2, pixels' mean, with lambda = 1 / c_out^2 (eq. 8): the network's squared error
    against (y - c_skip (y + n)) / c_out. Pixels from pixel_low to pixel_high become -1 to 1.

    sigma_data: root mean square of the images in that range. log_mean, log_std: of log(sigma) in training.
    label_dropout: share of the labels that training withholds (Ho and Salimans 2022, arXiv:2207.12598).
    guidance_scale: of samples, on D; 1 is the conditional model, the paper's w is guidance_scale - 1.
    sampling_steps: noise levels of a sample, each but the last with two calls of the network (algorithm 1).
    sigma_min, sigma_max, rho: of those levels (eq. 5). grid_columns: samples of each class in `sample_images`.
    """

    sampling_steps: int = 18
    sigma_data: float = 0.5
    log_mean: float = -1.2
    log_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        super().__post_init__()
        for name in ("sigma_data", "log_std", "sigma_min", "rho"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_max = {self.sigma_max}: must be more than sigma_min = {self.sigma_min}")

    def task(
        self, clean: Float[Array, "batch height width channels"], noise: Array, uniform: Float[Array, " batch"]
    ) -> Task:
        """To find what the skip connection leaves, scaled to variance 1, at a log-normal sigma."""
        sigma = jnp.exp(self.log_mean + self.log_std * jax.scipy.special.ndtri(uniform))[:, None, None, None]
        c = preconditioning(sigma, self.sigma_data)
        noised = clean + sigma * noise
        return Task(c.into * noised, c.noise[:, 0, 0, 0], (clean - c.skip * noised) / c.out)

    def levels(self) -> Float[np.ndarray, " steps+1"]:
        """sigma of each level of a sample."""
        return karras_sigmas(self.sampling_steps, self.sigma_min, self.sigma_max, self.rho).astype(np.float32)

    def start(self, noise: Float[Array, "batch height width channels"]) -> Array:
        """Noise of the largest sigma."""
        return self.sigma_max * noise

    def step(self, predict: Any, x: Array, level: Array, following: Array, noise: Array, *, last: bool) -> Array:
        """From sigma `level` to the smaller one `following`; no noise is added."""

        def denoise(x: Array, sigma: Array) -> Array:
            c = preconditioning(sigma, self.sigma_data)
            return c.skip * x + c.out * predict(c.into * x, c.noise)

        return heun_step(denoise, x, level, following, last=last)


class Preconditioning(NamedTuple):
    """c_skip, c_out, c_in and c_noise."""

    skip: Array
    out: Array
    into: Array
    noise: Array


def preconditioning(sigma: Float[Array, "*items"], sigma_data: float) -> Preconditioning:
    """Karras et al. 2022, table 1: inputs and targets of the network have variance 1 for images of variance sigma_data^2."""
    total = jnp.square(sigma) + sigma_data**2
    return Preconditioning(
        skip=sigma_data**2 / total,
        out=sigma * sigma_data / jnp.sqrt(total),
        into=1.0 / jnp.sqrt(total),
        noise=jnp.log(sigma) / 4.0,
    )
