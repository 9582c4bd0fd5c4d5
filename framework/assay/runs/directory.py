"""A run's directory: made so that no two runs share it, found again by a part of its name, locked while a process trains in it.

It holds `config.gin` (as given, flattened), `operative.gin` (as used), `run.json` (what the run is and what happened to it),
`metrics.jsonl` (see assay.runs.metrics), `checkpoints/`, `samples/`, `log.txt`, and what trackers keep in `trackers/`.
"""

import contextlib
import datetime
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from assay.errors import RunError, did_you_mean
from assay.runs.files import write_atomically
from assay.runs.metrics import finite

FORMAT = 1
RECORD = "run.json"
LOCK = ".lock"
LATEST = "latest"


class RunDirectory:
    """The directory of one run. Making the object reads nothing; see `create` and `open_run`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The run's name among others: the time it was made (UTC), the experiment, and a random end. Sorts by time."""
        return self.path.name

    @property
    def metrics(self) -> Path:
        """The store of logged numbers."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints' directory, which need not exist yet."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """The directory of texts, images and figures, which need not exist yet."""
        return self.path / "samples"

    def record(self) -> dict[str, Any]:
        """The content of run.json. Raises RunError when it is missing, damaged or of another format version."""
        file = self.path / RECORD
        try:
            found = json.loads(file.read_text())
            written = found["format"]
        except FileNotFoundError as error:
            raise RunError(f"{self.path} is no run directory: it has no {RECORD}") from error
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise RunError(f"{file} is damaged: {error}; restore it from a copy, or remove the run") from error
        if written != FORMAT:
            raise RunError(
                f"{self.path} has run format {written}, and this Assay reads format {FORMAT}; "
                f"use Assay {found.get('assay', 'of the version')} that wrote it"
            )
        return dict(found)

    def update(self, **values: Any) -> None:
        """Set entries of run.json, which is replaced as a whole. Raises RunError as `record` and `write` do."""
        self.write(RECORD, json.dumps(finite({**self.record(), **values}), indent=1, allow_nan=False) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a file of the directory as a whole or not at all. Raises RunError when the disk does not take it."""
        try:
            write_atomically(self.path / name, text)
        except OSError as error:
            raise RunError(f"cannot write {self.path / name}: {error}; make room or mend its permissions") from error

    def log(self, message: str) -> None:
        """Add a line with the time to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{now()} {message}\n")

    @contextlib.contextmanager
    def session(self, **facts: Any) -> Iterator["Session"]:
        """Train in the run: hold its lock, and note in run.json when the session began and ended, and why.

        facts: JSON-able, kept with the session (environment, mesh). Raises RunError when another process holds the lock.
        """
        with self._locked():
            begun = {"start": now(), "end": None, "exit": None, "pid": os.getpid(), **facts}
            earlier = self.record()["sessions"]
            session = Session(lambda facts: self.update(sessions=[*earlier, begun | facts]))
            try:
                yield session
            except BaseException as error:
                with contextlib.suppress(RunError):  # a disk that is full now must not hide why
                    session.end(_reason(error))
                raise
            session.end(session.exit)

    def is_training(self) -> bool:
        """Whether a process holds the lock now."""
        file = self.path / LOCK
        if not file.exists():
            return False
        try:
            with filelock.FileLock(file, timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:  # no permission to lock: not our run
            return False

    def status(self) -> str:
        """One of "new", "running", "completed", "interrupted", "failed: …", or "died" where a session ended without a word."""
        sessions = self.record()["sessions"]
        if not sessions:
            return "new"
        if sessions[-1]["exit"] is None:
            return "running" if self.is_training() else "died"
        return str(sessions[-1]["exit"])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = filelock.FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=1)  # `is_training` elsewhere holds it for a moment
        except filelock.Timeout as error:
            pid = (self.record()["sessions"] or [{}])[-1].get("pid", "unknown")
            raise RunError(
                f"run {self.id} is in use by another process (id {pid}); wait for it or stop it first"
            ) from error
        try:
            yield
        finally:
            lock.release()


class Session:
    """What to note when a session ends without an exception: `exit`, "completed" or "interrupted", and the step reached."""

    def __init__(self, note: Callable[[dict[str, Any]], None] = lambda facts: None) -> None:
        """Note that the session has begun. note: puts facts into run.json."""
        self.exit = "completed"
        self.step: int | None = None
        self._put, self._facts = note, dict[str, Any]()
        self.note()

    def note(self, **facts: Any) -> None:
        """Add JSON-able facts to the session's entry."""
        self._facts |= facts
        self._put(self._facts)

    def end(self, reason: str) -> None:
        """Note that it has ended, and why."""
        self.note(end=now(), exit=reason, step=self.step)


def create(root: Path, name: str, *, files: Mapping[str, str] | None = None, **record: Any) -> RunDirectory:
    """Make a new run directory below `root`, whatever else is made at the same time.

    name: of the experiment. files: texts that are there before the directory counts as a run. record: further JSON-able entries of
    run.json, such as parent (the id of the run that this one goes on from), steps, config (flattened values), seed, data (its
    fingerprint). Raises RunError when it cannot be written.
    """
    path = _new_directory(root, re.sub(r"[^\w.-]+", "_", name))
    run = RunDirectory(path)
    for file, text in (files or {}).items():
        run.write(file, text)
    base = {"format": FORMAT, "id": run.id, "name": name, "parent": None, "created": now(), "sessions": []}
    run.write(RECORD, json.dumps(finite(base | record), indent=1, allow_nan=False) + "\n")
    return run


def open_run(which: str | Path, root: Path | None = None) -> RunDirectory:
    """The run at a path, or below `root` the one with that id, the only one whose id contains it, or the "latest".

    Raises RunError when there is none, naming the nearest; when several fit; and when it is of another format version.
    """
    root = default_root() if root is None else root
    path = Path(which)
    run = RunDirectory(path.absolute()) if (path / RECORD).exists() else _find(str(which), root)
    run.record()
    return run


def run_directories(root: Path) -> list[RunDirectory]:
    """The runs below `root`, oldest first."""
    found = root.iterdir() if root.is_dir() else ()
    return [RunDirectory(path) for path in sorted(found) if (path / RECORD).exists()]


def default_root() -> Path:
    """Where runs are kept: the environment variable ASSAY_RUNS, or `runs` in the working directory."""
    return Path(os.environ.get("ASSAY_RUNS") or "runs").absolute()


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _new_directory(root: Path, name: str) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S%f")[:-3]
            path = root.absolute() / f"{moment}-{name}-{secrets.token_hex(2)}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise RunError(
            f"cannot make a run directory in {root}: {error}; set ASSAY_RUNS or --root to a folder you may write"
        ) from error


def _find(which: str, root: Path) -> RunDirectory:
    runs = run_directories(root)
    if which == LATEST and runs:
        return runs[-1]
    fitting = [run for run in runs if run.id == which] or [run for run in runs if which and which in run.id]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RunError(
            f"'{which}' is a part of {len(fitting)} runs: {', '.join(r.id for r in fitting[-5:])}; write more of it"
        )
    raise RunError(f"no run '{which}' in {root}.{_there(which, runs)}")


def _there(which: str, runs: list[RunDirectory]) -> str:
    if not runs:
        return " There are no runs; `assay run X.gin` makes one, and ASSAY_RUNS or --root says where they are."
    return did_you_mean(which, [run.id for run in runs]) or f" The newest are {', '.join(run.id for run in runs[-3:])}."


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"failed: {type(error).__name__}: {error}"
