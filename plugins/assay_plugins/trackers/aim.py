"""Aim 3.29.1, the default tracker where it is installed: one store beside the runs, shown by `assay ui`.

Aim's traps are worked round here (docs/kinds/tracker.md has the list): making a store is not safe between processes, a run has one
writer, runs cannot be queried before they are indexed, and jax's scalars are refused.
"""

import atexit
import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from assay.runs.files import write_atomically

HASH_FILE = "trackers/aim.json"


@dataclasses.dataclass
class _Open:
    """What is open between `start` and `finish`."""

    repo: Any = None
    run: Any = None
    root: Path = Path()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AimTracker:
    """Logs to an Aim store on this machine. Needs `pip install assay[aim]`, on Python 3.11 or 3.12.

    repo: the directory that holds `.aim`; "" for the one that holds the run directories. experiment: Aim's name for the group of
    runs; "" for the experiment file's.

    A resumed run goes on in the same Aim run. Contexts become `context.subset`, the flattened configuration `run.hparams`.
    """

    repo: str = ""
    experiment: str = ""
    _open: _Open = dataclasses.field(init=False, repr=False, compare=False, default_factory=_Open)

    def available(self) -> bool:
        """Whether Aim is installed. Does not import it."""
        return importlib.util.find_spec("aim") is not None

    def start(self, run_directory: Path, record: Mapping[str, Any], *, resumed: bool) -> None:
        """Open the Aim run of this run directory, making the store and the run where there is none yet."""
        if not self.available():
            raise ModuleNotFoundError("Aim is not installed; pip install 'assay[aim]' on Python 3.11 or 3.12")
        root = Path(self.repo).expanduser() if self.repo else run_directory.parent
        self._open.root = root.absolute()
        with _quiet():
            self._open.repo = _repository(self._open.root)
            self._open.run = _run(self._open.repo, run_directory / HASH_FILE)
            run = self._open.run
            run.name = record.get("id", run_directory.name)
            run.experiment = self.experiment or record.get("name") or "default"
            run["hparams"] = nested(record.get("config", {}))
            run["assay"] = {"run": run.name, "directory": str(run_directory), "parent": record.get("parent")}

    def scalars(self, step: int, values: Mapping[str, float], context: str) -> None:
        """Track numbers under the context {"subset": context}."""
        floats = {name: float(np.asarray(value)) for name, value in values.items()}
        self._open.run.track(floats, step=step, context={"subset": context})

    def text(self, step: int, name: str, value: str) -> None:
        """Track a text."""
        from aim import Text

        self._open.run.track(Text(value), name=name, step=step)

    def image(self, step: int, name: str, value: np.ndarray) -> None:
        """Track an image, uint8 (height, width, 1 or 3)."""
        from aim import Image
        from PIL import Image as PillowImage

        picture = PillowImage.fromarray(value[..., 0] if value.shape[-1] == 1 else value)
        self._open.run.track(Image(picture), name=name, step=step)

    def figure(self, step: int, name: str, value: Any) -> None:
        """Track a plotly figure as such, and a matplotlib figure as an image."""
        from aim import Figure, Image

        self._open.run.track(Figure(value) if hasattr(value, "to_json") else Image(value), name=name, step=step)

    def flush(self) -> None:
        """Nothing waits here: Aim's storage engine writes each call to its log at once."""

    def finish(self, status: str) -> None:
        """Close the Aim run and index it, so that queries find it without Aim's web page having run."""
        run, repo = self._open.run, self._open.repo
        with _quiet():
            run["assay", "status"] = status
            run.close()
            _index(repo, self._open.root, run.hash)
        self._open.run = self._open.repo = None


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as dicts in dicts, which Aim's queries can walk.

    >>> nested({"model.transformer.layers": 4})
    {'model': {'transformer': {'layers': 4}}}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return found


def _repository(root: Path) -> Any:
    """The Aim store in `root`. Only one process may make it at a time: others would find it half-made."""
    from aim import Repo
    from aim.ext.cleanup import AutoClean

    # When Python exits, Aim ends its objects in a new thread, which Python 3.12 refuses then; this thread does it.
    if not AutoClean._registered_with_atexit:
        atexit.register(AutoClean._cleanup)
        AutoClean._registered_with_atexit = True
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / ".aim.lock"):
        made = (root / ".aim" / "VERSION").exists()
        return Repo.from_path(str(root), init=not made)


def _run(repo: Any, file: Path) -> Any:
    """The Aim run whose hash the file holds, or a new one. Our own system statistics are logged, so Aim's are off."""
    from aim import Run
    from aim.sdk.errors import MissingRunError

    options = {
        "repo": repo,
        "system_tracking_interval": None,
        "log_system_params": False,
        "capture_terminal_logs": False,
    }
    if file.exists():
        with contextlib.suppress(MissingRunError):  # the store was removed since
            return Run(json.loads(file.read_text())["hash"], **options)
    run = Run(**options)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps({"hash": run.hash, "repo": os.fspath(repo.root_path)}) + "\n")
    return run


def _index(repo: Any, root: Path, run_hash: str) -> None:
    from aim.sdk.index_manager import RepoIndexManager
    from aimrocks.errors import RocksIOError

    with (
        filelock.FileLock(root / ".aim.lock"),
        contextlib.suppress(RocksIOError),
    ):  # `aim up` has the index open, and indexes
        RepoIndexManager.get_index_manager(repo).index(run_hash)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and migration notes of Aim and what it imports, which no user of Assay can do anything about.

    Python's filters are the process's and not the thread's, so this is for starting and finishing only.
    """
    alembic = logging.getLogger("alembic")
    level = alembic.level
    alembic.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    alembic.setLevel(level)
