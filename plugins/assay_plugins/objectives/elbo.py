"""The evidence lower bound, which variational inference maximises."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from assay.errors import ConfigError
from assay.outcome import Batch, Outcome
from assay_plugins.bayes.outcome import evaluated
from assay_plugins.bayes.variational import Variational


@dataclasses.dataclass(frozen=True, kw_only=True)
class ELBO:
    """-ELBO / N = mean over rows of (-E_q log p(row | z)) + E_q (log q(z) - log p(z)) / N, N the rows of the training split.

    Each row's loss is its misfit plus 1/N of the divergence, so that the mean over any batch is an unbiased estimate, in nats for
    each row, of the bound over all rows (Hoffman et al. 2013, arXiv:1206.7055, section 2.3). For a guide that is a point it is
    minus the log of the joint density, over N. Evaluation reports minus the log predictive density instead, which needs no prior.

    particles: draws from q in each step.
    """

    particles: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for no draw."""
        if self.particles < 1:
            raise ValueError(f"particles = {self.particles}: must be at least 1")

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: what the program reads. Scalars in training: "divergence", in nats. Raises ConfigError for a module that is no guide."""
        if not isinstance(module, Variational):
            raise ConfigError(
                f"objective.elbo needs @model.svi() or a Bayesian program, and the model made a {type(module).__name__}"
            )
        if not train or rngs is None:
            return evaluated(module, batch)
        bound = module.bound(batch, rngs.guide(), self.particles)
        losses = bound.misfit + bound.divergence / module.problem.examples
        return Outcome(losses, jnp.ones_like(losses), scalars={"divergence": bound.divergence})
