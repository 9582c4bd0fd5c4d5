"""The artifact: a directory that is written whole or not at all, and never over another one.

manifest.json      what it is (see assay_export.manifest)
README.md          a draft of a model card
parity.json        how far each format is from the live model
cases.safetensors  examples with live outputs, for `assay artifact verify`
weights/           safetensors, shared by the programs
tokenizer/         the tokenizer's files, for text
run.py             runs it without Assay
FORMAT/            programs of one format, with loader.py
"""

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from assay.errors import ExportError
from assay.exported import Exported, Written
from assay.kinds import Exporter
from assay.runs.files import sync_directory
from assay_export import manifest, weights
from assay_export.runners import SCRIPT

PARITY, CASES, CARD = "parity.json", "cases.safetensors", "README.md"


@contextlib.contextmanager
def new(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out`; it becomes `out` when the block ends, and vanishes when the block raises.

    Raises ExportError where `out` exists and is not an empty directory, or cannot be written.
    """
    check_free(out)
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written: {error.strerror}; choose a directory that can be, with --out"
        ) from error
    try:
        yield temporary
        _synced(temporary)
        temporary.rename(out)  # onto an empty directory too, but onto nothing else
        sync_directory(out.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise ExportError(f"{out} was not written: {_in_the_way(error)}") from error
        raise


def check_free(out: Path) -> None:
    """Raise ExportError where `out` is there already, unless it is an empty directory, and where it cannot be made."""
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise ExportError(f"{out} cannot be read: {error.strerror}; choose another one with --out") from error
    if taken:
        raise ExportError(f"{out} exists and is not an empty directory; choose another one with --out, or remove it")
    place = out.resolve()
    if place == Path.cwd() or place.is_mount():  # another directory cannot take their place
        which = "the directory that you are in" if place == Path.cwd() else "a mount point"
        raise ExportError(f"{out} is {which}; name a directory to make in it, such as --out {out / 'model'}")
    check_beside(out, "--out")
    parent = next(p for p in place.parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        why = "may not be written" if parent.is_dir() else "is no directory"
        raise ExportError(f"{out} cannot be made: {parent} {why}; choose another one with --out")


def check_beside(path: Path, option: str) -> None:
    """Raise ExportError where `path` lies in an artifact: what does not belong to one damages it."""
    around = next((p for p in path.resolve().parents if (p / manifest.NAME).exists() and (p / PARITY).exists()), None)
    if around is not None:
        raise ExportError(f"{path} lies in the artifact {around}, which it would damage; choose another with {option}")


def fill(
    directory: Path,
    source: Exported,
    exporters: Mapping[str, Exporter],
    further: Mapping[str, Any],
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write weights, programs and loaders into `directory`, and the manifest as "unverified"; returns its content.

    further: entries of the manifest. progress: is told what is being written. Raises ExportError, as exporters do.
    """
    progress("writing weights")
    (directory / "weights").mkdir()
    weights.write(source.weights, directory / "weights")
    formats: dict[str, Written] = {}
    for name, exporter in exporters.items():
        (directory / name).mkdir()
        progress(f"writing {name}")
        formats[name] = exporter.write(source, directory / name)
        shutil.copyfile(exporter.loader(), directory / name / "loader.py")
    shutil.copyfile(SCRIPT, directory / SCRIPT.name)
    content = manifest.described(source, formats, further)
    for name, exporter in exporters.items():
        content["formats"][name]["settings"] = _settings(exporter)
    manifest.seal(directory, content, {})
    return content


def opened(directory: Path, name: str | None = None) -> dict[str, Any]:
    """The manifest of an artifact whose format `name`, or any for None, may be used; one that could not be compared may be.

    Raises ExportError for an artifact that is damaged, and for a format that there is not or that failed the gate.
    """
    content = manifest.read(directory)
    wrong = manifest.damage(directory, content)
    if wrong:
        shown = "; ".join(wrong[:3]) + ("; …" if wrong[3:] else "")
        raise ExportError(f"{directory} is damaged: {shown}; {manifest.AGAIN}")
    formats = [name] if name else list(content["formats"])
    if name and name not in content["formats"]:
        raise ExportError(f"{directory} has no format '{name}'; it has {', '.join(content['formats'])}")
    if all(manifest.format_status(content, n) == manifest.FAILED for n in formats):
        raise ExportError(
            f"{directory}: {', '.join(formats)} is marked failed: it differs from its model, see {directory / PARITY}; export the run again"
        )
    return content


def _settings(exporter: Exporter) -> dict[str, Any]:
    """The values of the exporter's settings, as JSON gives them back."""
    if not dataclasses.is_dataclass(exporter) or isinstance(exporter, type):
        return {}
    found = {field.name: getattr(exporter, field.name) for field in dataclasses.fields(exporter) if field.init}
    return dict(json.loads(json.dumps(found, default=str)))


def _in_the_way(error: OSError) -> str:
    """What kept an artifact from being written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}; make room there and in {tempfile.gettempdir()}, or choose another disk with --out and TMPDIR"
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        return "something else was written there meanwhile; choose another directory with --out"
    return f"{error}; mend that, or choose another directory with --out"


def _synced(directory: Path) -> None:
    """Everything in `directory` on disk, and files as readable as the directory: safetensors writes them for their owner only."""
    readable = directory.stat().st_mode & 0o666
    for path in [*directory.rglob("*"), directory]:
        if path.is_file():
            path.chmod(readable)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
