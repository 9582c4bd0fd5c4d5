"""The inverse square root of the step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """peak * min((t + 1) / warmup_steps, sqrt(warmup_steps / (t + 1))) (Vaswani et al. 2017, arXiv:1706.03762, eq. 3).

    peak: highest learning rate, reached after `warmup_steps` steps.
    """

    peak: float = 1e-3
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if not self.peak > 0:
            raise ValueError(f"peak = {self.peak}: must be positive")
        if self.warmup_steps < 1:
            raise ValueError(f"warmup_steps = {self.warmup_steps}: must be at least 1")

    def build(self, total_steps: int) -> optax.Schedule:
        """step, from 0 on -> learning rate."""

        def rate(step: jax.typing.ArrayLike) -> jax.Array:
            t = jnp.asarray(step, jnp.float32) + 1
            return self.peak * jnp.minimum(t / self.warmup_steps, jnp.sqrt(self.warmup_steps / t))

        return rate
