"""From a loaded experiment to a finished session: the run directory, its lock and record, training, and what came of it."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from assay import devices, runs
from assay.checkpoint import manifest
from assay.checkpoint.checkpoints import Checkpoints
from assay.config import Loaded, load_text
from assay.errors import RunError
from assay.kinds import Tracker
from assay.parallel.processes import is_first, shared_text
from assay.plan.plan import Plan, make_plan
from assay.plan.report import summary
from assay.runs.directory import RunDirectory, Session
from assay.track import Fanout, installed_trackers, rewind, to_stderr
from assay.train import begin
from assay.train.interrupt import StopRequest, stop_on_signals
from assay.train.ledger import Ledger
from assay.train.loop import Trainer
from assay.train.progress import Progress
from assay.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a session ended: the run, "completed" or "interrupted", the steps done, the last evaluation, and the exit code."""

    run: RunDirectory
    status: str
    step: int
    values: dict[str, float]
    code: int = 0


def start(loaded: Loaded, root: Path, *, parent: str | None = None, stop: StopRequest | None = None) -> Finished:
    """Make a run directory below `root` and train from the first step. parent: the run that this one goes on from.

    stop: the request of signals that are handled already; without it they are handled here.
    """
    with _stopping(stop) as request:
        plan = make_plan(loaded.experiment, loaded.where)
        run = _shared(lambda: _created(loaded, root, parent))
        return _session(loaded, plan, run, None, request)


def resume(run: RunDirectory, *, stop: StopRequest | None = None) -> Finished:
    """Go on from the run's newest whole checkpoint, or from the first step where there is none yet.

    Damaged checkpoints are reported and set aside. Raises RunError when all steps are done, or when the data is not what the run
    began with.
    """
    with _stopping(stop) as request:
        loaded = recorded(run)
        check_data(run, loaded)
        found = shared_text(str(_newest_whole(run)) if is_first() else None)
        step = None if found == "None" else int(found)
        if step is not None and step >= loaded.experiment.steps:
            if run.status() == "completed":
                raise RunError(f"run {run.id} is complete at step {step}; `assay evaluate {run.id}` evaluates it")
            return _completed(run, step)
        return _session(loaded, make_plan(loaded.experiment, loaded.where), run, step, request)


def recorded(run: RunDirectory) -> Loaded:
    """The experiment that a run recorded. Raises RunError when the record is not there."""
    path = run.path / "config.gin"
    try:
        return load_text(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise RunError(
            f"run {run.id} has no readable config.gin: {error}; restore it from a copy, or start a new run"
        ) from error


def check_data(run: RunDirectory, loaded: Loaded) -> None:
    """Raise RunError when the data is not what the run began with."""
    if run.record().get("data") != loaded.experiment.dataset.fingerprint():
        raise RunError(f"run {run.id}: its data has changed since it began; restore the data, or start a new run")


def restored(run: RunDirectory, step: int | None = None) -> tuple[Plan, TrainState, int]:
    """(plan, state, step) of a checkpoint (the newest without `step`), placed on the devices that there are now."""
    return _read(run, step, begin.restored)


def evaluated(run: RunDirectory, step: int | None = None) -> tuple[Plan, TrainState, int]:
    """The same with what evaluation uses alone, which is a third of it with Adam: see `TrainState.part_evaluated`."""
    return _read(run, step, begin.evaluated)


def _read(
    run: RunDirectory, step: int | None, read: Callable[[Plan, Checkpoints, int], TrainState]
) -> tuple[Plan, TrainState, int]:
    loaded = recorded(run)
    plan = make_plan(loaded.experiment, loaded.where)
    if not run.checkpoints.is_dir():
        raise RunError(f"run {run.id} has no checkpoint yet")
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    step = checkpoints.step(step)
    state = read(plan, checkpoints, step)
    checkpoints.close()
    return plan, state, step


def _created(loaded: Loaded, root: Path, parent: str | None) -> RunDirectory:
    """A new run with its record."""
    return runs.create(
        root,
        Path(loaded.path).stem,
        files={"config.gin": loaded.flat, "operative.gin": loaded.operative},
        parent=parent,
        steps=loaded.experiment.steps,
        seed=loaded.experiment.seed,
        config=loaded.values,
        config_digest=hashlib.sha256(loaded.operative.encode()).hexdigest(),
        data=loaded.experiment.dataset.fingerprint(),
        plugins=_plugins(loaded),
    )


def _shared(make: Callable[[], RunDirectory]) -> RunDirectory:
    """The run that the first of several processes makes, in all of them."""
    path = str(make().path) if is_first() else None
    return RunDirectory(Path(shared_text(path)))


def _completed(run: RunDirectory, step: int) -> Finished:
    """Note the end of a run that was killed after its last checkpoint."""
    with _recorded(run) as session:
        session.step = step
    return Finished(run, "completed", step, {})


def _session(loaded: Loaded, plan: Plan, run: RunDirectory, resume_from: int | None, stop: StopRequest) -> Finished:
    """Train in `run`, with its lock held and everything that happens recorded."""
    progress = Progress(plan.experiment.steps, plan.spec.unit, quiet=not is_first())
    for line in [f"run         {run.path}", *summary(plan), devices.cache_line()]:
        progress.line(line)
        if is_first():
            run.log(line)
    mesh = {name: int(size) for name, size in plan.layout.mesh.shape.items()}
    with contextlib.ExitStack() as stack:
        with stop.held:  # a session that has begun is never without somebody who notes its end
            session = stack.enter_context(_recorded(run, environment=runs.environment(), mesh=mesh))
            stop.on_exit, stop.report = lambda: session.end("interrupted"), progress.line
        stop.limit(plan.experiment.time_limit)
        if is_first():
            rewind(run, resume_from or 0)
        tracking = Fanout(run, _trackers(loaded, progress), primary=is_first(), report=progress.line)
        ledger = Ledger(run.path, primary=is_first())
        ledger.steps_done = resume_from or 0
        status = "failed"
        try:
            lineage = {"config": loaded.flat, "plugins": _plugins(loaded)}
            trainer = Trainer(plan, run, tracking, progress, lineage, ledger, session.note)
            try:
                status = trainer.train(trainer.begin(resume_from), stop)
            finally:
                trainer.close()
        finally:
            tracking.finish(status)
            ledger.write(force=True)
        session.exit, session.step = status, trainer.step
    for unused in loaded.unused():
        progress.line(f"{unused}: bound, but nothing used it")
    return Finished(run, status, trainer.step, trainer.evaluated, stop.code if status == "interrupted" else 0)


@contextlib.contextmanager
def _recorded(run: RunDirectory, **facts: Any) -> Iterator[Session]:
    """The run's session; of several processes only the first holds its lock and writes its record."""
    if is_first():
        with run.session(**facts) as session:
            yield session
    else:
        yield Session()


@contextlib.contextmanager
def _stopping(stop: StopRequest | None) -> Iterator[StopRequest]:
    """The request given, or one for the signals from now on."""
    if stop is not None:
        yield stop
    else:
        with stop_on_signals() as request:
            yield request


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


def _newest_whole(run: RunDirectory) -> int | None:
    """The step of the run's newest whole checkpoint; damaged ones that are newer are reported and set aside."""
    step = manifest.newest_whole(run.checkpoints, to_stderr)
    for damaged in manifest.steps(run.checkpoints):
        if step is None or damaged > step:
            to_stderr(f"it is kept as {manifest.set_aside(run.checkpoints, damaged)}")
    return step
