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
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay.errors import ExportError
from assay.exported import Exported, Written
from assay.kinds import Exporter
from assay_export import manifest, weights
from assay_export.runners import SCRIPT

PARITY, CASES, CARD = "parity.json", "cases.safetensors", "README.md"


@contextlib.contextmanager
def new(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out`; it becomes `out` when the block ends, and vanishes when the block raises.

    Raises ExportError where `out` exists and is not an empty directory, or cannot be written.
    """
    check_free(out)
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
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise ExportError(
                f"{out} cannot be written: {error}; make room, or choose another directory with --out"
            ) from error
        raise


def check_free(out: Path) -> None:
    """Raise ExportError where `out` is there already, unless it is an empty directory, and where it cannot be made."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ExportError(f"{out} exists and is not an empty directory; choose another one with --out, or remove it")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        why = "may not be written" if parent.is_dir() else "is no directory"
        raise ExportError(f"{out} cannot be made: {parent} {why}; choose another one with --out")


def fill(
    directory: Path, source: Exported, exporters: Mapping[str, Exporter], further: Mapping[str, Any]
) -> dict[str, Any]:
    """Write weights, programs and loaders into `directory`, and the manifest as "unverified"; returns its content.

    further: entries of the manifest. Raises ExportError, as exporters do.
    """
    (directory / "weights").mkdir()
    weights.write(source.weights, directory / "weights")
    formats: dict[str, Written] = {}
    for name, exporter in exporters.items():
        (directory / name).mkdir()
        formats[name] = exporter.write(source, directory / name)
        shutil.copyfile(exporter.loader(), directory / name / "loader.py")
    shutil.copyfile(SCRIPT, directory / SCRIPT.name)
    content = manifest.described(source, formats, further)
    manifest.seal(directory, content, "unverified")
    return content


def opened(directory: Path) -> dict[str, Any]:
    """The manifest of an artifact that may be used. Raises ExportError for one that is damaged, or that failed the gate."""
    content = manifest.read(directory)
    wrong = manifest.damage(directory, content)
    if wrong:
        shown = "; ".join(wrong[:3]) + ("; …" if wrong[3:] else "")
        raise ExportError(f"{directory} is damaged: {shown}; {manifest.AGAIN}")
    if content["status"] != "verified":
        raise ExportError(
            f"{directory} is marked {content['status']}: it differs from its model, see {directory / PARITY}"
        )
    return content


def _synced(directory: Path) -> None:
    """Everything in `directory` on disk, and readable for all: safetensors writes files for their owner only."""
    for path in [*directory.rglob("*"), directory]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
