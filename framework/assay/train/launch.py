"""From a loaded experiment to a finished session: the run directory, its lock and record, training, and what came of it."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from assay import runs
from assay.checkpoint.checkpoints import Checkpoints
from assay.config import Loaded, load_text
from assay.errors import RunError
from assay.kinds import Tracker
from assay.plan.plan import Plan, make_plan
from assay.plan.report import summary
from assay.runs.directory import RunDirectory
from assay.track import Fanout, installed_trackers, rewind
from assay.train import begin
from assay.train.interrupt import stop_on_signals
from assay.train.loop import Trainer
from assay.train.progress import Progress
from assay.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a session ended: the run, "completed" or "interrupted", the steps done, and the last evaluation."""

    run: RunDirectory
    status: str
    step: int
    values: dict[str, float]


def start(loaded: Loaded, root: Path, *, parent: str | None = None) -> Finished:
    """Make a run directory below `root` and train from the first step. parent: the run that this one goes on from."""
    plan = make_plan(loaded.experiment, loaded.where)
    run = runs.create(
        root,
        Path(loaded.path).stem,
        parent=parent,
        steps=loaded.experiment.steps,
        seed=loaded.experiment.seed,
        config=loaded.values,
        config_digest=hashlib.sha256(loaded.operative.encode()).hexdigest(),
        data=loaded.experiment.dataset.fingerprint(),
        plugins=_plugins(loaded),
    )
    run.write("config.gin", loaded.flat)
    run.write("operative.gin", loaded.operative)
    return _session(loaded, plan, run, None)


def resume(run: RunDirectory) -> Finished:
    """Go on from the run's newest complete checkpoint, or from the first step where there is none yet.

    Raises RunError when all steps are done, or when the data is not what the run began with.
    """
    loaded = recorded(run)
    record = run.record()
    if record.get("data") != loaded.experiment.dataset.fingerprint():
        raise RunError(f"run {run.id}: its data has changed since it began; restore the data, or start a new run")
    steps = _steps(run)
    if steps and steps[-1] >= loaded.experiment.steps:
        raise RunError(f"run {run.id} is complete at step {steps[-1]}; `assay evaluate {run.id}` evaluates it")
    return _session(loaded, make_plan(loaded.experiment, loaded.where), run, steps[-1] if steps else None)


def recorded(run: RunDirectory) -> Loaded:
    """The experiment that a run recorded. Raises RunError when the record is not there."""
    path = run.path / "config.gin"
    try:
        return load_text(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise RunError(
            f"run {run.id} has no readable config.gin: {error}; restore it from a copy, or start a new run"
        ) from error


def restored(run: RunDirectory, step: int | None = None) -> tuple[Plan, TrainState, int]:
    """(plan, state, step) of a checkpoint (the newest without `step`), placed on the devices that there are now."""
    loaded = recorded(run)
    plan = make_plan(loaded.experiment, loaded.where)
    if not run.checkpoints.is_dir():
        raise RunError(f"run {run.id} has no checkpoint yet")
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    step = checkpoints.step(step)
    state = begin.restored(plan, checkpoints, step)
    checkpoints.close()
    return plan, state, step


def _session(loaded: Loaded, plan: Plan, run: RunDirectory, resume_from: int | None) -> Finished:
    """Train in `run`, with its lock held and everything that happens recorded."""
    progress = Progress(plan.experiment.steps, plan.spec.unit)
    for line in [f"run         {run.path}", *summary(plan)]:
        progress.line(line)
        run.log(line)
    mesh = {name: int(size) for name, size in plan.layout.mesh.shape.items()}
    with run.session(environment=runs.environment(), mesh=mesh) as session, stop_on_signals() as stop:
        rewind(run, resume_from or 0)
        tracking = Fanout(run, _trackers(loaded, progress), primary=jax.process_index() == 0, report=progress.line)
        status = "failed"
        try:
            trainer = Trainer(plan, run, tracking, progress, {"config": loaded.flat, "plugins": _plugins(loaded)})
            try:
                status = trainer.train(trainer.begin(resume_from), stop)
            finally:
                trainer.close()
        finally:
            tracking.finish(status)
        session.exit, session.step = status, trainer.step
    for unused in loaded.unused():
        progress.line(f"{unused}: bound, but nothing used it")
    return Finished(run, status, trainer.step, trainer.evaluated)


def _trackers(loaded: Loaded, progress: Progress) -> Sequence[Tracker]:
    """The experiment's trackers. Raises RunError for one that cannot be used here."""
    chosen = loaded.experiment.trackers
    if chosen == "installed":
        return installed_trackers(progress.line)
    missing = [type(t).__name__ for t in chosen if not t.available()]
    if missing:
        raise RunError(
            f"experiment.trackers: {', '.join(missing)} cannot be used here; install its package, or leave it out"
        )
    return list(chosen)


def _plugins(loaded: Loaded) -> dict[str, Any]:
    """Selector -> distribution and version, of every plugin in use."""
    return {entry.selector: f"{entry.distribution} {entry.version}" for entry in loaded.plugins}


def _steps(run: RunDirectory) -> list[int]:
    """The steps of the run's complete checkpoints."""
    if not run.checkpoints.is_dir():
        return []
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()
