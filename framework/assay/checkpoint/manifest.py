"""The manifest of a checkpoint: the size and SHA-256 of each of its files, written before the checkpoint gets its name.

Orbax writes into a temporary directory and renames it once it is complete; `Sealed` writes `manifest.json` just before that. So a
checkpoint without a manifest, or with one that does not fit its files, is damaged.
"""

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orbax.checkpoint._src.metadata import checkpoint as step_metadata
from orbax.checkpoint._src.path import atomicity

from assay.errors import CheckpointError
from assay.runs.files import write_atomically

NAME = "manifest.json"
FORMAT = 1
TEMPORARY = "orbax-checkpoint-tmp"  # in the name of an unfinished checkpoint
THREADS = 4  # that read and hash files; hashlib does both without the interpreter's lock


class Sealed(atomicity.AtomicRenameTemporaryPath):  # type: ignore[misc]  # Orbax has no types here
    """Orbax's temporary directory of a checkpoint, which gets its manifest before it is renamed. One process finalizes."""

    async def finalize(self) -> None:
        """Bring the last files into their final form, seal them, and rename the directory."""
        directory, final = Path(self.get()), Path(self.get_final())
        if TEMPORARY in final.parent.name:  # one item of a checkpoint; the checkpoint's manifest will have its files
            await super().finalize()
            return
        # What Orbax does, with the seal as the last thing before the new name: nothing may change a file after it.
        await asyncio.to_thread(self._commit, directory, final)
        await asyncio.to_thread(seal, directory)
        await asyncio.to_thread(directory.rename, final)

    def _commit(self, directory: Path, final: Path) -> None:
        orbax: Any = self
        store = orbax._checkpoint_metadata_store
        if store is not None:
            store.wait_until_finished()
            file = step_metadata.step_metadata_file_path(self.get())
            store.update(file_path=file, commit_timestamp_nsecs=time.time_ns())
            store.wait_until_finished()
        (directory / atomicity.COMMIT_SUCCESS_FILE).write_text(f"Checkpoint commit was successful to {final}")


def seal(directory: Path) -> None:
    """Write the manifest of the files that are in `directory` now."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor(THREADS) as pool:
        facts = pool.map(_facts, paths)
    files = {str(path.relative_to(directory)): each for path, each in zip(paths, facts, strict=True)}
    body: dict[str, Any] = {"format": FORMAT, "files": files}
    write_atomically(directory / NAME, json.dumps(body | {"digest": _digest(body)}, indent=1))


def damage(directory: Path, part: str = "") -> list[str]:
    """What is wrong with the checkpoint in `directory`, a line for each file; empty when it is whole.

    part: look only at the files whose names begin with it. Raises CheckpointError for a manifest of another format.
    """
    try:
        body = json.loads((directory / NAME).read_text())
        digest = body.pop("digest")
    except FileNotFoundError:
        return [f"{NAME} is missing"]
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return [f"{NAME} cannot be read: {error}"]
    if digest != _digest(body):
        return [f"{NAME} was changed"]
    if body["format"] != FORMAT:
        raise CheckpointError(
            f"{directory / NAME} has format {body['format']}, this Assay reads format {FORMAT}; "
            "use the Assay version that wrote it (run.json names it)"
        )
    files = {name: facts for name, facts in body["files"].items() if name.startswith(part)}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_wrong, (directory / name for name in files), files.values())
    return [f"{name} {wrong}" for name, wrong in zip(files, found, strict=True) if wrong]


def steps(directory: Path) -> list[int]:
    """The steps of the checkpoints in `directory` that got their names, ascending, whole or not."""
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()) if directory.is_dir() else []


def newest_whole(directory: Path, report: Callable[[str], None], before: int | None = None) -> int | None:
    """The step of the newest checkpoint that is whole, or None; each newer one is reported with what is wrong with it.

    before: look only at those of earlier steps.
    """
    for step in reversed([step for step in steps(directory) if before is None or step < before]):
        place = directory / str(step)
        wrong = damage(place)
        if not wrong:
            return step
        shown = "; ".join(wrong[:3]) + ("; …" if wrong[3:] else "")
        report(f"CHECKPOINT {step} IS DAMAGED and is not used: {shown} ({place})")
    return None


def set_aside(directory: Path, step: int) -> Path:
    """Rename a damaged checkpoint, so that its step can be saved again, and return its new place."""
    names = (f"damaged-{step}{f'-{n}' if n else ''}" for n in itertools.count())
    place = next(path for name in names if not (path := directory / name).exists())
    return (directory / str(step)).rename(place)


def _wrong(path: Path, facts: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != facts["bytes"]:
            return f"has {size} bytes, not {facts['bytes']}"
        return None if _facts(path) == facts else "was changed: another SHA-256"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
