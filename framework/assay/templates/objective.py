"""The focal loss."""

import dataclasses

import jax
import jax.numpy as jnp
from assay.outcome import Batch, Outcome
from flax import nnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """-(1 - p)^gamma log p of the true class (Lin et al. 2017, arXiv:1708.02002, eq. 4). Negative labels do not count.

    gamma: how much less examples count that are right already; 0 is the cross entropy.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative gamma."""
        if not self.gamma >= 0:
            raise ValueError(f"gamma = {self.gamma}: must be at least 0")

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """Losses are not reduced: the core takes sum(losses * weights) / sum(weights), whatever the mesh."""
        assert callable(module)
        logits = module(batch, train=train, rngs=rngs).astype(jnp.float32)
        label = batch["label"]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(label, 0)[:, None], axis=-1)[:, 0]
        losses = -((1 - jnp.exp(log_p)) ** self.gamma) * log_p
        return Outcome(losses, (label >= 0).astype(jnp.float32), logits, label)
