"""Sampling as an NNX module: Markov chains whose whole state is module variables, so that a training step is one transition of each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.errors import ConfigError
from assay.outcome import Batch
from assay_plugins.bayes.density import Position, joint, latent_shapes
from assay_plugins.bayes.predictive import Predictive, predictive
from assay_plugins.bayes.program import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Settings of the No-U-Turn sampler; see models.nuts."""

    chains: int
    warmup: int
    draws: int
    target_acceptance: float
    max_tree_depth: int
    dense_mass: bool
    init_radius: float


class ChainState(nnx.Variable[Any]):
    """What a chain goes on from: numpyro's HMCState without its random keys, or a part of the record of draws."""


class Sampled(nnx.Module):
    """Chains, their adaptation, and the draws so far.

    state: numpyro's HMCState with a leading axis of chains. kept: latent site -> unconstrained draws (chains, draws, ...), zero
    where there are none yet. divergences: of each chain since its warm-up.
    """

    def __init__(self, problem: Problem, options: Sampler, rngs: nnx.Rngs) -> None:
        self.problem, self.options = problem, options
        o, shapes = options, latent_shapes(problem)
        start = {
            name: jax.random.uniform(rngs.params(), (o.chains, *shape), jnp.float32, -o.init_radius, o.init_radius)
            for name, shape in shapes.items()
        }
        rows = {k: jax.ShapeDtypeStruct((2, *v.shape), v.dtype) for k, v in problem.spec.elements.items()}
        begun = jax.eval_shape(lambda rows, z: self._begin(rows, z, jax.random.key(0)), rows, start)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), begun)
        self.state = ChainState(zeros._replace(z=start))
        self.kept = nnx.Dict({n: ChainState(jnp.zeros((o.chains, o.draws, *s))) for n, s in shapes.items()})
        self.divergences = ChainState(jnp.zeros((o.chains,), jnp.int32))

    @property
    def count(self) -> Int[Array, ""]:
        """Draws of each chain so far."""
        return jnp.clip(self.state.get_value().i[0] - self.options.warmup, 0, self.options.draws)

    def advance(self, batch: Batch, key: Array) -> dict[str, Float[Array, ""]]:
        """One transition of every chain, given all rows. Returns what is worth a curve, averaged over the chains.

        Raises ConfigError for a batch that is not the whole data: the posterior would be another one at each step.
        """
        rows, needed = len(batch["mask"]), self.problem.examples
        if rows != needed:
            raise ConfigError(
                f"sampling needs all {needed} rows of the training split in each step, and gets {rows}: "
                f"set experiment.batch_size to {needed} and experiment.accumulation to 1, or choose @model.svi()"
            )
        before = self.state.get_value()
        begin, move = jax.random.split(key)
        begun = jax.lax.cond(before.i[0] == 0, lambda s: _like(s, self._begin(batch, s.z, begin)), lambda s: s, before)
        after = _like(before, self._moved(batch, begun, move))
        self.state.set_value(after)
        self._keep(after)
        return {
            "potential_energy": jnp.mean(after.potential_energy),
            "acceptance": jnp.mean(after.accept_prob),
            "step_size": jnp.mean(after.adapt_state.step_size),
            "leapfrog_steps": jnp.mean(after.num_steps.astype(jnp.float32)),
            "divergences": jnp.sum(self.divergences[...]).astype(jnp.float32),
        }

    def predict(self, batch: Batch) -> Predictive:
        """The mixture of the draws so far, or, before there are any, of points at the origin."""
        o = self.options
        is_there = jnp.arange(o.draws) < jnp.maximum(self.count, 1)
        weights = jnp.tile(is_there, o.chains).astype(jnp.float32) / (o.chains * jnp.maximum(self.count, 1))
        flat = {name: kept[...].reshape(-1, *kept.shape[2:]) for name, kept in self.kept.items()}
        found = predictive(self.problem, flat, weights, batch)
        sites = {name: x.reshape(o.chains, o.draws, *x.shape[1:]) for name, x in found.sites.items()}
        return dataclasses.replace(found, sites=sites)

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "batch outputs"]:
        """Log probabilities of classes (batch, classes), or mean and standard deviation (batch, 2), over the draws so far."""
        return self.predict(batch).output

    def _begin(self, batch: Batch, z: Position, key: Array) -> Any:
        """The state of chains that begin at `z`."""
        begin, _ = self._kernel(batch)
        return jax.vmap(lambda z, key: _without_keys(begin(z, key)))(z, self._keys(key))

    def _moved(self, batch: Batch, state: Any, key: Array) -> Any:
        """The state after one transition of each chain."""
        begin, move = self._kernel(batch)
        first = jax.tree.map(lambda x: x[0], state.z)
        jax.eval_shape(begin, first, key)  # numpyro's kernel learns its settings, the warm-up's length too, only so
        return jax.vmap(lambda s, key: _without_keys(move(s._replace(rng_key=key))))(state, self._keys(key))

    def _kernel(self, batch: Batch) -> tuple[Any, Any]:
        """numpyro's (begin, move) for one chain (Hoffman and Gelman 2014, arXiv:1111.4246; adaptation as Stan's)."""
        from numpyro.infer.hmc import hmc

        o = self.options

        def potential(position: Position) -> Array:
            return joint(self.problem, position, batch).potential()

        begin, move = hmc(potential_fn=potential, algo="NUTS")

        def begun(z: Position, key: Array) -> Any:
            return begin(
                z,
                o.warmup,
                target_accept_prob=o.target_acceptance,
                max_tree_depth=o.max_tree_depth,
                dense_mass=o.dense_mass,
                trajectory_length=None,
                rng_key=key,
            )

        return begun, move

    def _keys(self, key: Array) -> Array:
        return jax.random.split(key, self.options.chains)

    def _keep(self, state: Any) -> None:
        """Record the position of chains that are warm. Draws beyond the room for them are not kept."""
        o = self.options
        place = state.i[0] - o.warmup - 1
        is_warm = place >= 0
        place = jnp.where(is_warm, place, o.draws)
        for name, kept in self.kept.items():
            kept[...] = kept[...].at[:, place].set(state.z[name], mode="drop")
        self.divergences[...] = self.divergences[...] + (state.diverging & is_warm)


def _without_keys(state: Any) -> Any:
    """The state without random keys: each step has its own, from the run's."""
    return state._replace(rng_key=None, adapt_state=state.adapt_state._replace(rng_key=None))


def _like(old: Any, new: Any) -> Any:
    """`new` in exactly the dtypes of `old`, so that one program serves every step."""
    return jax.tree.map(lambda a, b: jax.lax.convert_element_type(b, a.dtype), old, new)
