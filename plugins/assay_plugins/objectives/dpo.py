"""Direct preference optimisation."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.outcome import Batch, Outcome
from assay_plugins.objectives.cross_entropy import cross_entropy, smoothed
from assay_plugins.objectives.likelihood import reference_of, row_log_probabilities


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO:
    """-log sigma(h), h = beta * (log p(y+)/p_ref(y+) - log p(y-)/p_ref(y-)) (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    It is the cross entropy of two classes with logits (0, h), and is given to metrics as that: metric.accuracy is the share of pairs
    that the model orders right.

    beta: how dear it is to leave the reference. label_smoothing: share of pairs taken to be the wrong way round, in training
        (conservative DPO, Mitchell 2023): (1 - s) * -log sigma(h) + s * -log sigma(-h).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if not self.beta > 0:
            raise ValueError(f"beta = {self.beta}: must be positive")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing = {self.label_smoothing}: must be at least 0 and less than 0.5")

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: `inputs`, `targets` of the preferred, `rejected_inputs`, `rejected_targets`; int32 (batch, seq), targets -1 in prompts.

        module: of model.with_reference. Scalars: mean rewards beta * log p/p_ref of both sides.
        """
        reference = reference_of(module, "dpo")
        rewards = []
        for prefix in ("", "rejected_"):
            row = batch[f"{prefix}inputs"], batch[f"{prefix}targets"]
            policy = row_log_probabilities(module, *row, train=train, rngs=rngs)
            rewards.append(self.beta * (policy - row_log_probabilities(reference, *row, train=False, rngs=None)))
        losses, scores = preference_losses(rewards[0] - rewards[1], self.label_smoothing if train else 0.0)
        chosen = jnp.ones(losses.shape, jnp.int32)
        means = {f"{name}_reward": jnp.mean(x) for name, x in zip(("chosen", "rejected"), rewards, strict=True)}
        return Outcome(losses, jnp.ones_like(losses), scores, chosen, jax.lax.stop_gradient(means))


def preference_losses(
    margins: Float[Array, " batch"], label_smoothing: float = 0.0
) -> tuple[Float[Array, " batch"], Float[Array, "batch 2"]]:
    """((1 - s) * -log sigma(h) + s * -log sigma(-h) of each margin h, in nats; the logits (0, h) of two classes), fp32."""
    scores = jnp.stack([jnp.zeros_like(margins), margins], axis=-1)
    nll, normalizer = cross_entropy(scores, jnp.ones(margins.shape, jnp.int32))
    # Half of the uniform distribution's share lies on the chosen side, so that 2 s of it puts s on the other.
    return smoothed(scores, nll, normalizer, 2 * label_smoothing), scores
