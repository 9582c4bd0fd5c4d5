"""The Experiment: everything that decides a run, frozen, built once from a gin file through the single root `experiment`."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from assay.errors import ConfigError
from assay.kinds import Dataset, Kernel, Metric, Model, Objective, Optimizer, Parallelism, Tracker

ComputeDtype = Literal["float32", "bfloat16"]
OnFault = Literal["stop", "skip", "rewind"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment. In gin: `experiment.steps = 2000`, `experiment.model = @model.transformer()`, …

    model, dataset, objective, optimizer, parallelism: one plugin each.
    metrics: computed over each evaluated split; the loss itself always is.
    kernels: further implementations of ops, which run wherever they support the call and none of higher priority does.
    trackers: plugins that receive what is logged, or "installed" for every tracker plugin whose backend can be used here.
        The run directory itself is always written.
    steps: optimizer updates. batch_size: examples in one update, over all devices and micro-batches.
    accumulation: micro-batches in one update; must divide batch_size.
    seed: the only source of randomness, for parameters, data order and dropout.
    compute_dtype: of activations and of the parameters' copies they meet; parameters and optimizer state stay fp32.
    ema_decay: decay of an exponential moving average of the parameters, used by evaluation; None for none.
    steps_per_dispatch: updates in one call to the device (`lax.scan`), or "auto" (many where a step is small).
    prefetch: batches read ahead. workers: processes that read data; 0 reads in a thread of this one.
    log_every, evaluate_every, checkpoint_every, sample_every: in steps; 0 switches the last three off (evaluation and
        checkpoint still happen at the end).
    evaluate_splits: the splits that are evaluated. evaluate_batch_size: examples at once, at most; None for batch_size.
    keep_checkpoints: newest ones kept. keep_best: also keep the best by this value, such as "validation/loss" (lower is
        better) or "+validation/accuracy" (higher is better); None keeps no best.
    time_limit: seconds after which a session saves a checkpoint and stops to be started again (exit code 75); None for none.
    on_nonfinite: what to do where the loss or a gradient is not finite: "stop" with a dump of the batch; "skip" the update; or
        "rewind" to the last checkpoint and go on from there without that batch.
    on_spike: the same for a loss more than spike_deviations standard deviations above its running mean, or "ignore".
    hang_factor: a step that takes this many times the median (and at least a minute) ends the session with the stacks of all
        threads (exit code 70); None for never.
    deterministic: use only operations that are reproducible bit for bit on GPUs as well, at some cost in speed.
    sample_prompts: what samples start from, for objectives that can sample.
    profile_steps: (first, last) step of a profiler trace written into the run directory, or None.
    peak_flops: peak FLOP/s of one device, for model FLOPs utilisation; None takes the known value of the device kind.
    """

    model: Model
    dataset: Dataset
    objective: Objective
    optimizer: Optimizer
    parallelism: Parallelism
    steps: int
    batch_size: int
    metrics: Sequence[Metric] = ()
    kernels: Sequence[Kernel] = ()
    trackers: Sequence[Tracker] | Literal["installed"] = "installed"
    accumulation: int = 1
    seed: int = 0
    compute_dtype: ComputeDtype = "float32"
    ema_decay: float | None = None
    steps_per_dispatch: int | Literal["auto"] = "auto"
    prefetch: int = 4
    workers: int = 0
    log_every: int = 20
    evaluate_every: int = 0
    evaluate_splits: Sequence[str] = ("validation",)
    evaluate_batch_size: int | None = None
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    keep_best: str | None = None
    sample_every: int = 0
    time_limit: float | None = None
    on_nonfinite: OnFault = "stop"
    on_spike: OnFault | Literal["ignore"] = "ignore"
    spike_deviations: float = 8.0
    hang_factor: float | None = 50.0
    deterministic: bool = False
    sample_prompts: Sequence[str] = ()
    profile_steps: tuple[int, int] | None = None
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError with every value that is out of range or does not fit another."""
        problems = list(_problems(self))
        if problems:
            raise ConfigError("\n".join(problems))


def _problems(e: Experiment) -> list[str]:
    """Every wrong value, as sentences."""
    at_least = {"steps": 1, "batch_size": 1, "accumulation": 1, "prefetch": 1, "log_every": 1, "keep_checkpoints": 1}
    at_least |= {"workers": 0, "evaluate_every": 0, "checkpoint_every": 0, "sample_every": 0}
    found = [
        f"experiment.{name} = {getattr(e, name)}: must be at least {low}"
        for name, low in at_least.items()
        if getattr(e, name) < low
    ]
    if e.accumulation >= 1 and e.batch_size % e.accumulation:
        found.append(f"experiment.accumulation = {e.accumulation}: must divide experiment.batch_size = {e.batch_size}")
    if isinstance(e.steps_per_dispatch, int) and e.steps_per_dispatch < 1:
        found.append(f"experiment.steps_per_dispatch = {e.steps_per_dispatch}: must be at least 1, or 'auto'")
    if e.ema_decay is not None and not 0 < e.ema_decay < 1:
        found.append(f"experiment.ema_decay = {e.ema_decay}: must be between 0 and 1, or None")
    more = {"time_limit": 0.0, "spike_deviations": 0.0, "hang_factor": 1.0}
    found += [
        f"experiment.{name} = {getattr(e, name)}: must be more than {low}{'' if name == 'spike_deviations' else ', or None'}"
        for name, low in more.items()
        if getattr(e, name) is not None and not getattr(e, name) > low
    ]
    if e.profile_steps is not None and not 2 <= e.profile_steps[0] <= e.profile_steps[1] <= e.steps:
        found.append(
            f"experiment.profile_steps = {e.profile_steps}: must be (first, last) with "
            f"2 <= first <= last <= experiment.steps = {e.steps} (step 1 compiles)"
        )
    if e.evaluate_batch_size is not None and e.evaluate_batch_size < 1:
        found.append(f"experiment.evaluate_batch_size = {e.evaluate_batch_size}: must be at least 1, or None")
    return found
