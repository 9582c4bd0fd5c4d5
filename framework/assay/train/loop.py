"""The training loop: data -> step -> metrics -> callbacks, until the last step or a request to stop."""

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from assay.checkpoint.checkpoints import Checkpoints
from assay.data.pipeline import train_batches
from assay.evaluate.evaluator import Evaluator
from assay.plan.flops import model_flops_utilization
from assay.plan.plan import Plan, jitted
from assay.runs.directory import RunDirectory
from assay.track.fanout import Fanout
from assay.train import begin
from assay.train.callbacks import Callback, callbacks_of
from assay.train.feed import local_rows, stack, to_devices
from assay.train.interrupt import StopRequest
from assay.train.progress import Progress
from assay.train.state import TrainState

IN_FLIGHT = 2  # dispatches handed to the device before the host waits for the oldest


class Trainer:
    """One session of a run: restores or draws the state, trains, and leaves a checkpoint of where it stopped.

    lineage: JSON-able facts that every checkpoint carries along (configuration, plugin versions).
    """

    def __init__(
        self, plan: Plan, run: RunDirectory, tracking: Fanout, progress: Progress, lineage: Mapping[str, Any]
    ) -> None:
        e = plan.experiment
        self.plan, self.run, self.tracking, self.progress = plan, run, tracking, progress
        self.evaluator = Evaluator(plan)
        self.evaluator.check_best()
        rows = local_rows(plan.layout, e.batch_size)
        self.batches = train_batches(
            e.dataset.source("train"),
            batch_size=e.batch_size,
            seed=e.seed,
            rows=rows,
            prefetch=e.prefetch,
            workers=e.workers,
        )
        self.checkpoints = Checkpoints(run.checkpoints, keep=e.keep_checkpoints, best=e.keep_best)
        self.callbacks = callbacks_of(plan, run.path)
        self.meter = Meter()
        self.state: TrainState
        self.step = 0
        self._lineage = dict(lineage)
        self._dispatches: dict[int, Any] = {}
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._saved = -1

    def begin(self, resume_from: int | None = None) -> int:
        """Draw the state from the seed, or restore it from a checkpoint, whatever mesh wrote that. Returns the steps done."""
        if resume_from is None:
            self.state = begin.drawn(self.plan)
            self._lineage["frozen"] = begin.digests(self.state.frozen)
            return 0
        self.state = begin.restored(self.plan, self.checkpoints, resume_from)
        self._lineage["frozen"] = self.checkpoints.extra(resume_from)["frozen"]
        self.batches.restore(self.checkpoints.extra(resume_from)["iterator"])
        self._saved = resume_from
        return resume_from

    def train(self, step: int, stop: StopRequest) -> str:
        """Train from `step` to the last one, or until `stop`. Returns "completed" or "interrupted"; a checkpoint is on disk."""
        total = self.plan.experiment.steps
        in_flight: collections.deque[tuple[int, Any]] = collections.deque()
        while step < total and not stop:
            count = dispatch_length(step, self.plan.steps_per_dispatch, total, self.callbacks)
            batches = stack([next(self.batches) for _ in range(count)])
            self.state, metrics = self._dispatch(count)(self.state, to_devices(self.plan.layout, batches, stacked=True))
            step += count
            in_flight.append((step, metrics))
            due = [callback for callback in self.callbacks if callback.due(step)]
            while len(in_flight) >= (1 if due else IN_FLIGHT):
                self._log(*in_flight.popleft())
            self.checkpoints.check()
            for callback in due:
                callback.act(self, step)
            if due:
                self.meter.restart()
        while in_flight:
            self._log(*in_flight.popleft())
        self.step = step
        if self._saved != step:
            self.save(step)
        self.checkpoints.wait()
        return "completed" if step >= total else "interrupted"

    @property
    def evaluated(self) -> dict[str, float]:
        """The values of the last evaluation."""
        return self._evaluated[1]

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate every split of the experiment, log and print the values; once for each step."""
        if self._evaluated[0] != step:
            values: dict[str, float] = {}
            for split in self.plan.experiment.evaluate_splits:
                found = self.evaluator(split, self.state)
                self.tracking.scalars(step, {name.split("/", 1)[1]: v for name, v in found.items()}, split)
                values |= found
            self._evaluated = (step, values)
            self.progress.line(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
        return self._evaluated[1]

    def save(self, step: int) -> None:
        """Begin to save everything needed to go on; evaluate first where the best checkpoint is kept."""
        metrics = self.evaluate(step) if self.plan.experiment.keep_best else {}
        extra = {"step": step, "iterator": self.batches.state(), **self._lineage}
        self.tracking.flush()  # the log on disk never ends before the checkpoint it belongs to
        self.checkpoints.save(step, dataclasses.replace(self.state, frozen={}), extra, metrics)
        self._saved = step

    def close(self) -> None:
        """Stop the background threads of data and checkpoints."""
        self.batches.close()
        self.checkpoints.close()

    def _dispatch(self, count: int) -> Any:
        if count not in self._dispatches:
            self._dispatches[count] = jitted(self.plan, count)
        return self._dispatches[count]

    def _log(self, last: int, metrics: Mapping[str, jax.Array]) -> None:
        """Wait for a dispatch that ended with step `last`; hand what is due to the trackers."""
        host: dict[str, np.ndarray] = {k: np.asarray(v) for k, v in jax.device_get(metrics).items()}
        count = len(host["loss"])
        seconds = self.meter.tick(count)
        steps = range(last - count + 1, last + 1)
        due = [i for i, step in enumerate(steps) if step % self.plan.experiment.log_every == 0]
        if due:
            self.tracking.scalars_many([steps[i] for i in due], {k: v[due] for k, v in host.items()}, "train")
            if seconds is not None:
                self.tracking.scalars(steps[due[-1]], self._throughput(seconds), "throughput")
        rate = None if seconds is None else self.plan.units_per_step / seconds
        self.progress.update(last, float(host["loss"][-1]), rate, seconds, force=last == self.plan.experiment.steps)

    def _throughput(self, seconds: float) -> dict[str, float]:
        """Units per second, seconds per step, and model FLOPs utilisation where the device's peak is known."""
        plan = self.plan
        values = {f"{plan.spec.unit}_per_second": plan.units_per_step / seconds, "seconds_per_step": seconds}
        if plan.peak_flops:
            values["mfu"] = model_flops_utilization(plan.flops_per_step, seconds, plan.device_count, plan.peak_flops)
        return values


class Meter:
    """Seconds per step, averaged over the dispatches since evaluation, saving or compilation last got in the way."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._steps = 0

    def restart(self) -> None:
        """Forget what went before."""
        self._since = None

    def tick(self, steps: int) -> float | None:
        """Count `steps` more; seconds per step, or None for the first dispatch, which may have compiled."""
        now = time.perf_counter()
        if self._since is None:
            self._since, self._steps = now, 0
            return None
        self._steps += steps
        return (now - self._since) / self._steps


def dispatch_length(step: int, steps_per_dispatch: int, total: int, callbacks: Sequence[Callback]) -> int:
    """How many updates the next dispatch does after `step`: all up to the next multiple of `steps_per_dispatch`, or one.

    One where the end or a callback comes before that multiple. The answer depends on nothing but the step, so a resumed run is
    divided into the same programs as one that was never interrupted.
    """
    boundary = step + steps_per_dispatch - step % steps_per_dispatch
    early = boundary > total or any(c.due(s) for c in callbacks for s in range(step + 1, boundary))
    return steps_per_dispatch if not early and boundary - step == steps_per_dispatch else 1
