"""The posterior predictive distribution: what many draws of the latent sites, taken together, say of each row."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from assay.outcome import Batch
from assay_plugins.bayes.density import Joint, Position, joint
from assay_plugins.bayes.program import Problem

TOGETHER = 64  # draws evaluated at once; bounds the memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Predictive:
    """A mixture over draws.

    log_density: of each row, log(mean over draws of p(row | draw)). scores: log probability of each class, where there are any.
    moments: mean and standard deviation, where there are no classes. sites: value of each site in every draw, (draws, ...).
    """

    log_density: Float[Array, " batch"]
    scores: Float[Array, "batch classes"] | None
    moments: Float[Array, "batch 2"] | None
    sites: Mapping[str, Array]

    @property
    def output(self) -> Float[Array, "batch outputs"]:
        """The scores or, without any, the moments."""
        found = self.moments if self.scores is None else self.scores
        assert found is not None
        return found


def predictive(problem: Problem, positions: Position, weights: Float[Array, " draws"], batch: Batch) -> Predictive:
    """The mixture of the draws `positions`, each (draws, ...), with `weights` that sum to 1. Draws of weight 0 do not matter."""

    def one(position: Position) -> Joint:
        return joint(problem, position, batch)

    found = jax.lax.map(one, positions, batch_size=min(TOGETHER, len(weights)))
    return Predictive(
        log_density=_mixed(found.likelihood, weights),
        scores=None if found.scores is None else _mixed(found.scores, weights),
        moments=None if found.moments is None else _of_mixture(found.moments, weights),
        sites=found.sites,
    )


def _mixed(logs: Float[Array, "draws *items"], weights: Float[Array, " draws"]) -> Float[Array, "*items"]:
    """log(sum over draws of weights exp(logs))."""
    return jax.nn.logsumexp(logs, axis=0, b=weights.reshape(-1, *[1] * (logs.ndim - 1)))


def _of_mixture(moments: Float[Array, "draws batch 2"], weights: Float[Array, " draws"]) -> Float[Array, "batch 2"]:
    """Mean and standard deviation from the draws' means and variances, by the law of total variance."""
    means, variances = moments[..., 0], moments[..., 1]
    mean = jnp.einsum("d,db->b", weights, means)
    variance = jnp.einsum("d,db->b", weights, variances + jnp.square(means - mean[None]))
    return jnp.stack([mean, jnp.sqrt(variance)], axis=-1)
