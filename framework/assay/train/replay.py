"""One step of a run done again, from the checkpoint before it, with what it does to each parameter. The run stays as it is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from assay.checkpoint import manifest
from assay.checkpoint.checkpoints import Checkpoints, dotted
from assay.data.pipeline import TrainIterator
from assay.errors import RunError
from assay.network import Tree
from assay.plan.plan import Plan, jitted, make_plan
from assay.runs import read_metrics
from assay.runs.directory import RunDirectory
from assay.track import to_stderr
from assay.train import begin
from assay.train.callbacks import callbacks_of
from assay.train.faults import KINDS
from assay.train.feed import stack, to_devices, training_batches
from assay.train.launch import check_data, recorded
from assay.train.loop import dispatch_length
from assay.train.progress import Progress
from assay.train.state import TrainState
from assay.train.step import make_inspected_step

COLUMNS = ("size", "parameter", "gradient", "largest", "finite", "update")


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What a step was.

    begun: the checkpoint's step that it was reached from, 0 for the beginning. batch: its number; examples: those of its rows.
    logged: the loss in the run's log, or None where there is none. fault: what is wrong with the step, or None.
    dumped: whether the batch is the one in the dump of this step's fault; None without a dump.
    layers: dotted path of a parameter -> "size" (elements), 2-norms of "parameter" (before), "gradient" (before clipping) and "update",
    "largest" gradient by magnitude, and "finite", the share of the gradient's elements that are.
    """

    run: str
    step: int
    begun: int
    batch: int
    examples: list[int]
    metrics: dict[str, float]
    logged: float | None
    fault: str | None
    dumped: bool | None
    layers: dict[str, dict[str, float]]


def replay(run: RunDirectory, step: int, report: Callable[[str], None] = to_stderr) -> Replayed:
    """Do the `step`-th update of `run` again. report: gets a line where a checkpoint is damaged.

    Raises RunError for a step that the experiment does not have, and when the data is not what the run began with.
    """
    loaded = recorded(run)
    e = loaded.experiment
    if not 1 <= step <= e.steps:
        raise RunError(f"--step {step}: the steps of run {run.id} are 1 to {e.steps}")
    check_data(run, loaded)
    plan = make_plan(e, loaded.where)
    batches = training_batches(plan)
    try:
        begun = manifest.newest_whole(run.checkpoints, report, before=step) or 0
        state = _advanced(plan, run, batches, _state(plan, run, batches, begun), begun, step - 1)
        host = next(batches)
        (number,) = batches.batches_back(1)
        examples = batches.examples(number)
    finally:
        batches.close()
    metrics, layers = _inspected(plan, state, to_devices(plan.layout, host))
    kind = int(metrics.pop("fault"))
    rows = [row for row in read_metrics(run.metrics) if row["context"] == "train" and row["step"] == step]
    return Replayed(
        run=run.id,
        step=step,
        begun=begun,
        batch=number,
        examples=examples,
        metrics=metrics,
        logged=rows[-1]["loss"] if rows else None,
        fault=KINDS.get(kind),
        dumped=_dumped(run, step, host),
        layers=layers,
    )


def _state(plan: Plan, run: RunDirectory, batches: TrainIterator, begun: int) -> TrainState:
    """The state after `begun` steps, with `batches` at its place."""
    if not begun:
        batches.restore(batches.state() | {"next_batch": 0})
        return begin.drawn(plan)
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    try:
        batches.restore(checkpoints.extra(begun)["iterator"])
        return begin.restored(plan, checkpoints, begun)
    finally:
        checkpoints.close()


def _advanced(
    plan: Plan, run: RunDirectory, batches: TrainIterator, state: TrainState, done: int, until: int
) -> TrainState:
    """The state after `until` steps, by the programs that the run used, as far as they do not reach beyond."""
    callbacks = callbacks_of(plan, run.path)
    progress = Progress(until, plan.spec.unit)
    dispatches: dict[int, Any] = {}
    while done < until:
        count = dispatch_length(done, plan.steps_per_dispatch, plan.experiment.steps, callbacks)
        count = count if done + count <= until else 1
        if count not in dispatches:
            dispatches[count] = jitted(plan, count)
        host = stack([next(batches) for _ in range(count)])
        state, metrics = dispatches[count](state, to_devices(plan.layout, host, stacked=True))
        done += count
        progress.update(done, float(metrics["loss"][-1]), None, None)
    return state


def _inspected(
    plan: Plan, state: TrainState, batch: Mapping[str, jax.Array]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(the step's metrics, each parameter's numbers)."""
    step = make_inspected_step(plan.experiment, plan.network, plan.optimizer, plan.layout)

    def inspect(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        _, metrics, gradients, updates = step(state, batch)
        numbers = jax.tree.map(_numbers, state.params, gradients, updates)
        return {k: v for k, v in metrics.items() if k != "gradient_norms"}, _by_path(plan, numbers)

    metrics, layers = jax.device_get(jax.jit(inspect, out_shardings=plan.layout.replicated)(state, batch))
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in dotted(plan.abstract.params).items()}
    named = {path: dict(zip(COLUMNS[1:], map(float, values), strict=True)) for path, values in layers.items()}
    return {k: float(v) for k, v in metrics.items()}, {path: {"size": sizes[path], **named[path]} for path in named}


def _numbers(parameter: Array, gradient: Array, update: Array) -> Float[Array, " 5"]:
    """COLUMNS without the size."""
    finite = jnp.mean(jnp.isfinite(gradient), dtype=jnp.float32)
    return jnp.stack([_norm(parameter), _norm(gradient), jnp.max(jnp.abs(gradient)), finite, _norm(update)])


def _norm(x: Array) -> Float[Array, ""]:
    return jnp.linalg.norm(x.reshape(-1).astype(jnp.float32))


def _by_path(plan: Plan, numbers: Tree) -> dict[str, Array]:
    """A tree like the parameters', by dotted path."""
    return dict(zip(dotted(plan.abstract.params), jax.tree.leaves(numbers), strict=True))


def _dumped(run: RunDirectory, step: int, batch: Mapping[str, np.ndarray]) -> bool | None:
    """Whether the dump of a fault in this step holds the same batch; None without a dump, or where it holds another process' rows."""
    place = run.path / "faults" / f"step-{step}" / "batch.npz"
    if not place.exists():
        return None
    with np.load(place) as dump:
        if any(dump[name].shape != values.shape for name, values in batch.items()):
            return None
        return all(
            np.array_equal(dump[name], values, equal_nan=values.dtype.kind == "f") for name, values in batch.items()
        )
