"""The training loop: data -> step -> metrics -> callbacks, until the last step or a request to stop."""

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from assay.checkpoint import manifest
from assay.checkpoint.checkpoints import Checkpoints
from assay.checkpoint.digests import digests
from assay.evaluate.evaluator import Evaluator
from assay.parallel.processes import Agreement
from assay.plan.flops import model_flops_utilization
from assay.plan.plan import Plan, jitted
from assay.runs.directory import RunDirectory
from assay.track.fanout import Fanout
from assay.train import begin
from assay.train.callbacks import Callback, Evaluate, Sample, callbacks_of
from assay.train.faults import Faults, Rewind
from assay.train.feed import stack, to_devices, training_batches
from assay.train.interrupt import Abandoned, StopRequest
from assay.train.kernels import Kernels
from assay.train.ledger import Ledger
from assay.train.progress import Progress
from assay.train.state import TrainState
from assay.train.watchdog import Watchdog

IN_FLIGHT = 2  # dispatches handed to the device before the host waits for the oldest


class Trainer:
    """One session of a run: restores or draws the state, trains, and leaves a checkpoint of where it stopped.

    lineage: JSON-able facts that every checkpoint carries along (configuration, plugin versions). ledger: where the time goes.
    note: takes JSON-able facts by name for the run's record.
    """

    def __init__(
        self,
        plan: Plan,
        run: RunDirectory,
        tracking: Fanout,
        progress: Progress,
        lineage: Mapping[str, Any],
        ledger: Ledger | None = None,
        note: Callable[..., None] = lambda **facts: None,
    ) -> None:
        e = plan.experiment
        self.plan, self.run, self.tracking, self.progress = plan, run, tracking, progress
        self.ledger = ledger or Ledger(run.path)
        self.evaluator = Evaluator(plan)
        self.evaluator.check_best()
        self.batches = training_batches(plan)
        self.checkpoints = Checkpoints(run.checkpoints, keep=e.keep_checkpoints, best=e.keep_best)
        self.callbacks = callbacks_of(plan, run.path)
        self.faults = Faults(plan, run, self.batches, progress.line)
        self.watchdog = Watchdog(e.hang_factor, run.path, progress.line)
        self.agreement = Agreement(plan.layout.mesh.devices.ravel().tolist())
        self.meter = Meter()
        self.kernels = Kernels(progress.line)
        self.state: TrainState
        self.step = 0
        self._lineage, self._note = dict(lineage), note
        self._dispatches: dict[int, Any] = {}
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._saved = -1
        self._stop = StopRequest()
        self._stopped = False
        self._unfinished = False

    def begin(self, resume_from: int | None = None) -> int:
        """Draw the state from the seed, or restore it from a checkpoint, whatever mesh wrote that. Returns the steps done."""
        if resume_from is None:
            self.state = begin.drawn(self.plan)
            self._lineage["frozen"] = digests(self.state.frozen)
            self.batches.restore(self.batches.state() | {"next_batch": 0})
            return 0
        self.state = begin.restored(self.plan, self.checkpoints, resume_from)
        extra = self.checkpoints.extra(resume_from)
        self._lineage["frozen"] = extra["frozen"]
        self.batches.restore(extra["iterator"])
        self._saved = resume_from
        return resume_from

    def train(self, step: int, stop: StopRequest) -> str:
        """Train from `step` to the last one, or until `stop`. Returns "completed" or "interrupted"; a checkpoint is on disk.

        Raises Fault where the loss or a gradient is not finite, or the loss has a spike, and the experiment says to stop then.
        """
        total = self.plan.experiment.steps
        self._stop = stop
        if step == self._saved and self.checkpoints.extra(step)["unfinished"]:
            self._act([c for c in self.callbacks if isinstance(c, Evaluate | Sample) and c.due(step)], step)
        while True:
            try:
                step = self._until(total, step)
                break
            except Rewind as rewind:
                step = self._rewound(rewind)
        self.step = step
        if self._saved != step:
            self.save(step)
        with self.ledger.phase("save"):
            self.checkpoints.wait()
        return "completed" if step >= total else "interrupted"

    def _until(self, total: int, step: int) -> int:
        """Train until `total` steps are done, or to the end of the dispatch in which all processes heard of a request to stop."""
        stop = self._stop
        in_flight: collections.deque[tuple[int, Any, Any]] = collections.deque()
        while step < total and not self._stopped:
            count = dispatch_length(step, self.plan.steps_per_dispatch, total, self.callbacks)
            with self.ledger.phase("data"):
                host = stack([next(self.batches) for _ in range(count)])
            stop.leave = False
            with self.ledger.phase("step" if count in self._dispatches else "compile"):
                batches = to_devices(self.plan.layout, host, stacked=True)
                self.state, metrics = self._dispatch(count, batches)(self.state, batches)
            step += count
            in_flight.append((step, metrics, self.agreement.ask(bool(stop))))
            due = [callback for callback in self.callbacks if callback.due(step)]
            while len(in_flight) >= (1 if due or stop else IN_FLIGHT):
                self._log(*in_flight.popleft(), ahead=step)
            self.checkpoints.check()
            self._act(due, step)
            self._stopped |= bool(stop) and jax.process_count() == 1
        while in_flight:
            self._log(*in_flight.popleft(), ahead=step)
        return step

    def _act(self, due: Sequence[Callback], step: int) -> None:
        """Let the callbacks of a step do what they do; a request to stop may cut that short."""
        try:
            for callback in due:
                callback.act(self, step)
        except Abandoned:
            self._stopped = self._unfinished = True
        if due:
            self.meter.restart()
            self.ledger.write()

    def _abandoned(self) -> bool:
        """Whether to give an evaluation up, to do it when the run goes on: its value must not decide what this session keeps."""
        return bool(self._stop) and jax.process_count() == 1 and self.plan.experiment.keep_best is None

    def _rewound(self, rewind: Rewind) -> int:
        """Go back to the last checkpoint, or to the beginning, and leave the bad batch out from there on. Returns the step."""
        self.checkpoints.wait()
        step = manifest.newest_whole(self.run.checkpoints, self.progress.line)
        self.progress.line(f"{rewind}; going back to step {step or 0}, and on without batch {rewind.batch}")
        self.begin(step)
        self.batches.skip(rewind.batch)
        self.tracking.rewind(step or 0)
        self._evaluated = (-1, {})
        return step or 0

    @property
    def evaluated(self) -> dict[str, float]:
        """The values of the last evaluation."""
        return self._evaluated[1]

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate every split of the experiment, log and print the values; once for each step."""
        if self._evaluated[0] != step:
            with self.ledger.phase("evaluate"):
                splits = self.plan.experiment.evaluate_splits
                found = {split: self.evaluator(split, self.state, self._abandoned) for split in splits}
            for split, values in found.items():
                self.tracking.scalars(step, {name.split("/", 1)[1]: v for name, v in values.items()}, split)
            self._evaluated = (step, {name: v for values in found.values() for name, v in values.items()})
            shown = "  ".join(f"{name} {value:.4f}" for name, value in self.evaluated.items())
            self.progress.line(f"step {step}  {shown}")
        return self.evaluated

    def save(self, step: int) -> None:
        """Begin to save everything needed to go on, with the values of this step's evaluation where there was one."""
        metrics = self.evaluated if self._evaluated[0] == step else {}
        with self.ledger.phase("save"):
            extra = {"step": step, "iterator": self.batches.state(), "unfinished": self._unfinished, **self._lineage}
            self.tracking.flush()  # the log on disk never ends before the checkpoint it belongs to
            self.checkpoints.save(step, dataclasses.replace(self.state, frozen={}), extra, metrics)
            self._saved = step

    def close(self) -> None:
        """Stop the background threads of data and checkpoints."""
        self.batches.close()
        self.checkpoints.close()

    def _dispatch(self, count: int, batches: Any) -> Any:
        """The compiled program of `count` updates of batches like these."""
        if count not in self._dispatches:
            self._dispatches[count] = self.kernels.compiled(jitted(self.plan, count), self.state, batches)
            self._note(kernels=[choice.as_json() for choice in self.kernels.choices])
        return self._dispatches[count]

    def _log(self, last: int, metrics: Mapping[str, jax.Array], answer: Any, *, ahead: int) -> None:
        """Wait for a dispatch that ended with step `last`; hand what is due to the trackers. ahead: the last step dispatched.

        Raises Fault or Rewind where a step of it went wrong.
        """
        metrics = dict(metrics)
        norms = metrics.pop("gradient_norms")
        with self.ledger.phase("step"), self.watchdog.armed():
            host: dict[str, np.ndarray] = {k: np.asarray(v) for k, v in jax.device_get(metrics).items()}
        count = len(host["loss"])
        self.watchdog.beat(count)
        self.ledger.steps_done = last
        seconds = self.meter.tick(count)
        steps = range(last - count + 1, last + 1)
        self._stopped |= self.agreement.any(answer)
        self._track(steps, {k: v for k, v in host.items() if k != "fault"}, seconds)
        self.faults.see(steps, host, norms, ahead - last)

    def _track(self, steps: range, host: Mapping[str, np.ndarray], seconds: float | None) -> None:
        """What is due of these steps to the trackers; the last one to the progress line."""
        last = steps[-1]
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
