"""The training state: one pytree with everything that a step reads and writes, and where each array of it lives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from assay.experiment import Experiment
from assay.network import Network, Tree
from assay.parallel.layout import Layout, parameter_shardings, state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guard:
    """Running mean and variance of the loss over the steps without a fault (exponential, see assay.train.guard), and their number."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    count: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training goes on from.

    step: updates done, int32. params: fp32. frozen: the model's Frozen variables, which checkpoints leave out. stats: its other
    variables. optimizer: optax state.
    ema: moving average of params, or None. guard: what the detector of loss spikes knows, or None.
    key: raw data of the run's random key, uint32; never advanced, steps fold into it.
    """

    step: Int[Array, ""]
    params: Tree
    frozen: Tree
    stats: Tree
    optimizer: Any
    ema: Tree | None
    guard: Guard | None
    key: Array

    @property
    def evaluated(self) -> Tree:
        """The parameters that evaluation uses: the moving average where there is one."""
        return self.params if self.ema is None else self.ema

    @property
    def part_evaluated(self) -> "TrainState":
        """It without what evaluation does not use: the optimizer's state, the guard, and parameters that have a moving average."""
        params = self.params if self.ema is None else {}
        return dataclasses.replace(self, params=params, optimizer=None, guard=None)

    @property
    def variables(self) -> tuple[Tree, Tree, Tree]:
        """(params, frozen, stats) that evaluation uses."""
        return self.evaluated, self.frozen, self.stats


def initial_variables(experiment: Experiment, network: Network) -> tuple[Tree, Tree, Tree]:
    """(params, frozen, stats), drawn from the seed. Traceable."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), 0)
    params, stats = network.init(key)
    return params, network.init_frozen(key), stats


def initial_state(
    experiment: Experiment,
    network: Network,
    optimizer: optax.GradientTransformation,
    variables: tuple[Tree, Tree, Tree] | None = None,
) -> TrainState:
    """The state before the first step, a pure function of the seed, or of `variables` (params, frozen, stats). Traceable."""
    params, frozen, stats = initial_variables(experiment, network) if variables is None else variables
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        stats=stats,
        optimizer=optimizer.init(params),
        ema=None if experiment.ema_decay is None else jax.tree.map(jnp.copy, params),
        guard=None if experiment.on_spike == "ignore" else _guard(),
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(experiment.seed), 1)),
    )


def _guard() -> Guard:
    return Guard(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def abstract_state(experiment: Experiment, network: Network, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and dtypes of the state; nothing is allocated."""
    variables = (network.params, network.frozen, network.stats)
    return jax.eval_shape(lambda variables: initial_state(experiment, network, optimizer, variables), variables)


def shardings_of(layout: Layout, network: Network, abstract: TrainState) -> TrainState:
    """The sharding of every array of the state. Raises LayoutError where a parameter does not fit the mesh."""
    params = parameter_shardings(layout, network.params, network.axes)
    replicated: Any = layout.replicated  # a tree of shardings in the shape of the state
    return TrainState(
        step=replicated,
        params=params,
        frozen=parameter_shardings(layout, network.frozen, network.frozen_axes),
        stats=jax.tree.map(lambda _: replicated, abstract.stats),
        optimizer=state_shardings(layout, abstract.optimizer, network.params, params),
        ema=None if abstract.ema is None else params,
        guard=jax.tree.map(lambda _: replicated, abstract.guard),
        key=replicated,
    )


def optimizer_of(experiment: Experiment, network: Network) -> optax.GradientTransformation:
    """The experiment's optimizer for this network."""
    return experiment.optimizer.build(experiment.steps, network.axes)
