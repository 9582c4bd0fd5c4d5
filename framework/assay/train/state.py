"""The training state: one pytree with everything that a step reads and writes, and where each array of it lives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from assay.experiment import Experiment
from assay.network import Network, Tree
from assay.parallel.layout import Layout, parameter_shardings, state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training goes on from.

    step: updates done, int32. params: fp32. stats: the model's other variables. optimizer: optax state.
    ema: moving average of params, or None. key: raw data of the run's random key, uint32; never advanced, steps fold into it.
    """

    step: Int[Array, ""]
    params: Tree
    stats: Tree
    optimizer: Any
    ema: Tree | None
    key: Array

    @property
    def evaluated(self) -> Tree:
        """The parameters that evaluation uses: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


def initial_state(experiment: Experiment, network: Network, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, a pure function of the seed. Traceable."""
    key = jax.random.key(experiment.seed)
    params, stats = network.init(jax.random.fold_in(key, 0))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        optimizer=optimizer.init(params),
        ema=None if experiment.ema_decay is None else jax.tree.map(jnp.copy, params),
        key=jax.random.key_data(jax.random.fold_in(key, 1)),
    )


def abstract_state(experiment: Experiment, network: Network, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and dtypes of the state; nothing is allocated."""
    return jax.eval_shape(lambda: initial_state(experiment, network, optimizer))


def shardings_of(layout: Layout, network: Network, abstract: TrainState) -> TrainState:
    """The sharding of every array of the state. Raises LayoutError where a parameter does not fit the mesh."""
    params = parameter_shardings(layout, network.params, network.axes)
    replicated: Any = layout.replicated  # a tree of shardings in the shape of the state
    return TrainState(
        step=replicated,
        params=params,
        stats=jax.tree.map(lambda _: replicated, abstract.stats),
        optimizer=state_shardings(layout, abstract.optimizer, network.params, params),
        ema=None if abstract.ema is None else params,
        key=replicated,
    )


def optimizer_of(experiment: Experiment, network: Network) -> optax.GradientTransformation:
    """The experiment's optimizer for this network."""
    return experiment.optimizer.build(experiment.steps, network.axes)
