"""Denoising diffusion with a discrete schedule, the network predicting the noise; samples by ancestral steps or by DDIM."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from assay_plugins.objectives.diffusion import Diffusion, Task
from assay_plugins.objectives.diffusion_samplers import (
    Schedule,
    alpha_bars,
    ancestral_step,
    clean_of,
    ddim_step,
    diffused,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Diffusion):
    """Ho et al. 2020 (arXiv:2006.11239), the simple loss (eq. 14): |noise - network(sqrt(a) x_0 + sqrt(1 - a) noise)|^2, pixels' mean.

    Pixels from pixel_low to pixel_high become -1 to 1. The network is told log(sqrt((1 - a) / a)) / 4 in place of the timestep.

    schedule, timesteps: of a = alpha_bar; linear is the paper's, cosine Nichol and Dhariwal's (2021, arXiv:2102.09672).
    label_dropout: share of the labels that training withholds (Ho and Salimans 2022, arXiv:2207.12598).
    guidance_scale: of samples; 1 is the conditional model, the paper's w is guidance_scale - 1.
    sampler: "ddpm" draws from the posterior (algorithm 2, its smaller variance), "ddim" takes Song et al.'s steps (2021,
        arXiv:2010.02502) with `eta`. sampling_steps: evenly spaced timesteps of a sample, from the last one on.
    clip: predicted clean images are cut to [-1, 1] while sampling. grid_columns: samples of each class in `sample_images`.
    """

    schedule: Schedule = "linear"
    timesteps: int = 1000
    sampler: Literal["ddpm", "ddim"] = "ddim"
    eta: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        super().__post_init__()
        if self.timesteps < 2:
            raise ValueError(f"timesteps = {self.timesteps}: must be at least 2")
        if self.sampling_steps > self.timesteps:
            raise ValueError(f"sampling_steps = {self.sampling_steps}: must be at most timesteps = {self.timesteps}")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta = {self.eta}: must be from 0 to 1")

    def task(
        self, clean: Float[Array, "batch height width channels"], noise: Array, uniform: Float[Array, " batch"]
    ) -> Task:
        """To find `noise` in the image of a timestep drawn evenly from 1 to `timesteps`."""
        table = jnp.asarray(alpha_bars(self.schedule, self.timesteps), jnp.float32)
        alpha_bar = table[1 + jnp.floor(uniform * self.timesteps).astype(jnp.int32)]
        return Task(diffused(clean, noise, alpha_bar[:, None, None, None]), noise_level(alpha_bar), noise)

    def levels(self) -> Float[np.ndarray, " steps+1"]:
        """alpha_bar at the timesteps of a sample."""
        times = np.round(np.linspace(self.timesteps, 0, self.sampling_steps + 1)).astype(np.int64)
        return alpha_bars(self.schedule, self.timesteps)[times].astype(np.float32)

    def start(self, noise: Float[Array, "batch height width channels"]) -> Array:
        """The noise itself."""
        return noise

    def step(self, predict: Any, x: Array, level: Array, following: Array, noise: Array, *, last: bool) -> Array:
        """From alpha_bar `level` to the larger one `following`."""
        clean = clean_of(x, predict(x, noise_level(level)), level)
        clean = jnp.clip(clean, -1.0, 1.0) if self.clip else clean
        if self.sampler == "ddpm":
            return ancestral_step(clean, x, level, following, noise)
        return ddim_step(clean, x, level, following, noise, self.eta)


def noise_level(alpha_bar: Float[Array, "*items"]) -> Float[Array, "*items"]:
    """log(sigma) / 4 for the ratio sigma of noise to image, sqrt((1 - alpha_bar) / alpha_bar)."""
    return jnp.log((1.0 - alpha_bar) / alpha_bar) / 8.0
