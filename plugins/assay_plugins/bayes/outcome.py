"""What objectives of Bayesian models return in evaluation: predictive losses and, for metrics, the draws."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from assay.outcome import Batch, Outcome
from assay_plugins.bayes.sampled import Sampled
from assay_plugins.bayes.variational import Variational


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PosteriorOutcome(Outcome):
    """An Outcome with what its predictions were made of; the same for every batch of a split.

    chains: site -> draws of a sampler (chains, draws, ...), of which the first `count` of each chain are there.
    draws: site -> independent draws of a guide (draws, ...). divergences: of the sampler, since its warm-up.
    """

    chains: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    draws: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    count: Int[Array, ""] | None = None
    divergences: Float[Array, ""] | None = None


def evaluated(module: Variational | Sampled, batch: Batch) -> PosteriorOutcome:
    """Losses: minus the log predictive density of each row, in nats. Logits: log probabilities, where there are classes."""
    found = module.predict(batch)
    base = PosteriorOutcome(
        losses=-found.log_density,
        weights=jnp.ones_like(found.log_density),
        logits=found.scores,
        targets=None if found.scores is None else batch.get("label"),
    )
    if isinstance(module, Variational):
        return dataclasses.replace(base, draws=found.sites)
    divergences = jnp.sum(module.divergences[...]).astype(jnp.float32)
    return dataclasses.replace(base, chains=found.sites, count=module.count, divergences=divergences)
