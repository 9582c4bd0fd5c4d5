"""What an objective returns for one batch, and the one way in which it becomes a number."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Batch = Mapping[str, Array]
"""Named arrays with a leading batch axis. The core adds `mask`, bool (batch,): False where a row only pads the batch."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """Unreduced losses of one batch.

    losses: one value in nats for each item (an example, or a token of one), first axis = batch.
    weights: same shape; 0 where an item must not count. The loss is sum(losses * weights) / sum(weights), taken once
        over all devices and all accumulated micro-batches, so that neither changes its value.
    logits: scores over classes, shape (*items, classes), where metrics can use them.
    targets: the true classes, shape (*items,), where there are any.
    scalars: further numbers worth a curve, already averaged over the batch.
    """

    losses: Float[Array, "*items"]
    weights: Float[Array, "*items"]
    logits: Float[Array, "*items classes"] | None = None
    targets: Int[Array, "*items"] | None = None
    scalars: Mapping[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)

    def masked(self, mask: Array) -> "Outcome":
        """The same with weight 0 in rows where `mask` (batch,) is False. The core applies it; objectives need not."""
        rows = mask.astype(self.weights.dtype).reshape(mask.shape + (1,) * (self.weights.ndim - 1))
        return dataclasses.replace(self, weights=self.weights * rows)

    def total(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(sum of weighted losses, sum of weights), both fp32 scalars. Items of weight 0 add nothing, even when not finite."""
        weights = self.weights.astype(jnp.float32)
        losses = jnp.where(weights > 0, self.losses.astype(jnp.float32), 0.0)
        return jnp.sum(losses * weights), jnp.sum(weights)
