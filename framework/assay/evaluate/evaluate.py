"""Metrics over a whole split: each batch gives mergeable sums on the device, the host adds them up in float64."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from assay.experiment import Experiment
from assay.kinds import Metric
from assay.network import Network, Tree
from assay.outcome import Batch
from assay.parallel.constrain import layout as active_layout
from assay.parallel.layout import Layout
from assay_kernels import using

Variables = tuple[Tree, Tree, Tree]
Sums = dict[str, dict[str, Any]]
EvaluationStep = Callable[[Variables, Batch], Sums]


def make_evaluation_step(experiment: Experiment, network: Network, layout: Layout) -> EvaluationStep:
    """((params, frozen, stats), batch) -> the state of the loss and of every metric for that batch. Pure; jit it."""

    def step(variables: Variables, batch: Batch) -> Sums:
        params, frozen, stats = variables
        with active_layout(layout.sharding), using(*experiment.kernels):
            module = network.merge(params, stats, experiment.compute_dtype, frozen)
            outcome = experiment.objective(module, batch, train=False, rngs=None).masked(batch["mask"])
        total, weight = outcome.total()
        sums: Sums = {str(i): m.update(outcome, network.spec) for i, m in enumerate(experiment.metrics)}
        return sums | {"loss": {"total": total, "weight": weight}}

    return step


def evaluate(
    experiment: Experiment, step: EvaluationStep, variables: Variables, batches: Iterator[Batch]
) -> Mapping[str, float]:
    """The loss and every metric over `batches` (the whole split, padded rows masked). `step` is jitted."""
    merged: Sums | None = None
    waiting: Sums | None = None
    for batch in batches:
        started = step(variables, batch)  # the device works on it while the host adds up the one before
        merged = _merged(experiment.metrics, merged, waiting)
        waiting = started
    merged = _merged(experiment.metrics, merged, waiting)
    assert merged is not None, "a split has at least one batch"
    return values_of(experiment, merged)


def values_of(experiment: Experiment, sums: Sums) -> dict[str, float]:
    """The loss and every metric from the sums of a whole split; without any item the loss is NaN."""
    loss = sums["loss"]
    values = {"loss": float(loss["total"] / loss["weight"]) if loss["weight"] else float("nan")}
    for i, metric in enumerate(experiment.metrics):
        values |= metric.compute(sums[str(i)])
    return values


def _merged(metrics: Any, a: Sums | None, b: Sums | None) -> Sums | None:
    """The sums of two sets of batches together, in float64."""
    if b is None:
        return a
    host = {name: {k: np.asarray(v, np.float64) for k, v in jax.device_get(state).items()} for name, state in b.items()}
    if a is None:
        return host
    return {name: _metric(metrics, name)(a[name], host[name]) for name in a}


def _metric(metrics: Any, name: str) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    if name == "loss":
        return lambda a, b: {k: a[k] + b[k] for k in a}
    metric: Metric = metrics[int(name)]
    return metric.merge
