"""One update as a pure function `(state, batch) -> (state, metrics)`, and several of them in one call to the device."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from assay.experiment import Experiment
from assay.network import Network, Tree
from assay.outcome import Batch
from assay.parallel.constrain import layout as active_layout
from assay.parallel.layout import Layout
from assay.train import guard
from assay.train.state import TrainState
from assay_kernels import using

Metrics = Mapping[str, Float[Array, ""]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    experiment: Experiment, network: Network, optimizer: optax.GradientTransformation, layout: Layout
) -> Step:
    """The update of `experiment`. Its loss is the weighted mean over the whole batch, whatever the mesh and the accumulation.

    metrics: "loss" (nats), "gradient_norm" (global, before clipping), "learning_rate", the objective's scalars, "fault" (int32, see
    assay.train.guard) and "gradient_norms", one for each parameter array in flattening order. Where the experiment says to skip
    a faulty step, only `step` advances in it.
    """
    inspected = make_inspected_step(experiment, network, optimizer, layout)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return inspected(state, batch)[:2]

    return step


def make_inspected_step(
    experiment: Experiment, network: Network, optimizer: optax.GradientTransformation, layout: Layout
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics, Tree, Tree]]:
    """The same update, which also gives the gradients (before clipping) and what is added to each parameter."""
    skips = {guard.NOT_FINITE: experiment.on_nonfinite == "skip", guard.SPIKE: experiment.on_spike == "skip"}
    learning_rate = experiment.optimizer.learning_rate_at(experiment.steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics, Tree, Tree]:
        with active_layout(layout.sharding), using(*experiment.kernels):
            gradients, stats, metrics = _gradients(experiment, network, state, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = jnp.stack([jnp.linalg.norm(g.reshape(-1)) for g in jax.tree.leaves(gradients)] or [jnp.zeros(())])
        norm = jnp.sqrt(jnp.sum(norms**2))
        wrong = guard.fault(metrics["loss"], norm, state.guard, experiment.spike_deviations)
        new = dataclasses.replace(
            state,
            params=params,
            stats=stats,
            optimizer=optimizer_state,
            ema=_moved(experiment.ema_decay, state.ema, params),
            guard=guard.moved(state.guard, metrics["loss"], wrong),
        )
        if any(skips.values()):
            kept = functools.reduce(jnp.logical_or, [wrong == kind for kind, skip in skips.items() if skip])
            new = jax.tree.map(lambda before, after: jnp.where(kept, before, after), state, new)
        new = dataclasses.replace(new, step=state.step + 1)
        metrics |= {"gradient_norm": norm, "gradient_norms": norms, "fault": wrong}
        metrics |= {"learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32)}
        return new, metrics, gradients, updates

    return step


def many(step: Step) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step` over the leading axis of every batch array, in one program; metrics come stacked."""

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        if len(next(iter(batches.values()))) > 1:
            return jax.lax.scan(step, state, batches)
        # Not a loop of one step: XLA keeps it a loop on CPU, where convolutions are up to thirty times slower in one.
        state, metrics = step(state, jax.tree.map(lambda x: x[0], dict(batches)))
        return state, jax.tree.map(lambda x: x[None], dict(metrics))

    return steps


def _gradients(
    experiment: Experiment, network: Network, state: TrainState, batch: Batch
) -> tuple[Tree, Tree, dict[str, Array]]:
    """(gradient of the mean loss, new stats, metrics), summed over the micro-batches and divided once."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def total(params: Tree, stats: Tree, micro: Batch, index: Array) -> tuple[Array, tuple[Any, ...]]:
        module = network.merge(params, stats, experiment.compute_dtype, state.frozen)
        rngs = nnx.Rngs(jax.random.fold_in(key, index))
        outcome = experiment.objective(module, micro, train=True, rngs=rngs).masked(micro["mask"])
        loss, weight = outcome.total()
        return loss, (weight, network.stats_of(module), dict(outcome.scalars))

    differentiated = jax.value_and_grad(total, has_aux=True)
    parts = experiment.accumulation
    if parts == 1:
        (loss, (weight, stats, scalars)), summed = differentiated(state.params, state.stats, batch, jnp.int32(0))
    else:

        def accumulate(carry: Any, part: tuple[Batch, Array]) -> tuple[Any, Any]:
            stats, loss, weight, summed = carry
            (loss_, (weight_, stats, scalars)), gradients = differentiated(state.params, stats, *part)
            return (stats, loss + loss_, weight + weight_, jax.tree.map(jnp.add, summed, gradients)), scalars

        zero = jnp.zeros((), jnp.float32)
        start = (state.stats, zero, zero, jax.tree.map(jnp.zeros_like, state.params))
        micro = jax.tree.map(lambda x: _split(x, parts), dict(batch))
        (stats, loss, weight, summed), scalars = jax.lax.scan(accumulate, start, (micro, jnp.arange(parts)))
        scalars = jax.tree.map(lambda x: jnp.mean(x, axis=0), scalars)
    scale = jnp.where(weight > 0, 1.0 / jnp.maximum(weight, 1e-30), 0.0)
    return jax.tree.map(lambda g: g * scale, summed), stats, {"loss": loss * scale, **scalars}


def _split(x: Array, parts: int) -> Array:
    """(batch, …) -> (parts, batch / parts, …), taking every parts-th row so that no row leaves its device."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _moved(decay: float | None, ema: Tree | None, params: Tree) -> Tree | None:
    """The exponential moving average one step on."""
    if decay is None or ema is None:
        return None
    return jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, params)
