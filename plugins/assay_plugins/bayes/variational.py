"""Variational inference as an NNX module: the parameters of an approximate posterior, its evidence bound and its predictions."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.outcome import Batch
from assay_plugins.bayes.density import Joint, Position, joint, latent_shapes
from assay_plugins.bayes.guides import Delta, Family, make_guide
from assay_plugins.bayes.predictive import Predictive, predictive
from assay_plugins.bayes.program import Problem


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bound:
    """The two terms of -ELBO, averaged over draws from the guide.

    misfit: -log p(row | draw) of each row. divergence: log q(draw) - log p(draw), whose mean is KL(q | prior), in nats.
    """

    misfit: Float[Array, " batch"]
    divergence: Float[Array, ""]


class Variational(nnx.Module):
    """q(latent sites) as a guide's parameters."""

    def __init__(
        self,
        problem: Problem,
        family: Family,
        *,
        init_radius: float,
        init_scale: float,
        draws: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.problem, self.draws = problem, draws
        shapes = latent_shapes(problem)
        self.guide = make_guide(
            family, shapes, problem.program.axes(problem.spec), radius=init_radius, scale=init_scale, rngs=rngs
        )

    def bound(self, batch: Batch, key: Array, particles: int) -> Bound:
        """Monte Carlo estimates with `particles` draws, by reparameterisation (Kingma and Welling 2014, arXiv:1312.6114, eq. 7)."""

        def one(key: Array) -> Bound:
            position, log_q = self.guide.draw(key)
            found = joint(self.problem, position, batch)
            return Bound(-found.likelihood, log_q - self._prior(found))

        bounds = jax.vmap(one)(jax.random.split(key, particles))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), bounds)

    def predict(self, batch: Batch) -> Predictive:
        """The mixture of `draws` draws under a fixed key."""
        return self._predictive(batch, jax.random.key(0), self.draws)

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "batch outputs"]:
        """Log probabilities of classes (batch, classes), or mean and standard deviation (batch, 2); in training of one random draw."""
        if train and rngs is not None:
            return self._predictive(batch, rngs.guide(), 1).output
        return self.predict(batch).output

    def _predictive(self, batch: Batch, key: Array, draws: int) -> Predictive:
        positions: Position = jax.vmap(lambda k: self.guide.draw(k)[0])(jax.random.split(key, draws))
        return predictive(self.problem, positions, jnp.full((draws,), 1 / draws), batch)

    def _prior(self, found: Joint) -> Float[Array, ""]:
        """The density that the guide's is compared with. A mode is one of the sites' own values, as is usual: without the Jacobian."""
        return found.prior if isinstance(self.guide, Delta) else found.prior + found.jacobian
