"""The running interpreter's standard library as text: real code, on every machine, without a download."""

import dataclasses
import functools
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from assay.data import cache
from assay.data.contents import content_digest
from assay.data.corpus import checked_fraction, decode_utf8, fraction_of, read_bytes
from assay.data.text import TextDataset
from assay.errors import DataError

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"})
"""Folders of other people's packages, of tests, and of tables that a program wrote."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonStdlib(TextDataset):
    """The `.py` files of the standard library (about 11 MB), each one a document. Their text differs between Python versions.

    Options of all text datasets (tokenizer, context, packing, stride): see `TextDataset`.
    validation_fraction: of the files, drawn by a hash of their path, so that a file stays on its side in every version.
    max_bytes: at most so much source, from files drawn likewise; None for all.
    """

    validation_fraction: float = 0.1
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings that cannot be."""
        super().__post_init__()
        checked_fraction("validation_fraction", self.validation_fraction)
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes = {self.max_bytes}: must be at least 1, or None")

    def corpus(self) -> "SourceTree":
        """The files found. Raises DataError when this interpreter has its library in no folder, or a split would be empty."""
        root = Path(sysconfig.get_path("stdlib"))
        names = _bounded(root, _module_files(root), self.max_bytes)
        tree = SourceTree(root, tuple(names), self.validation_fraction)
        for split in tree.splits:
            if not tree.names(split):
                raise DataError(
                    f"split '{split}' of the {len(names)} source files taken from {root} is empty; raise max_bytes, or "
                    "change validation_fraction"
                )
        return tree


@dataclasses.dataclass(frozen=True)
class SourceTree:
    """Files of a folder as documents, a part of them held out. files: paths within `root`, in order."""

    root: Path
    files: tuple[str, ...]
    fraction: float
    splits: Sequence[str] = ("train", "validation")

    def names(self, split: str) -> list[str]:
        """The files of a split."""
        held_out = split == "validation"
        return [name for name in self.files if (fraction_of(name, "validation") < self.fraction) == held_out]

    def documents(self, split: str) -> Iterator[str]:
        """The text of each file of a split."""
        for name in self.names(split):
            yield decode_utf8(read_bytes(self.root / name), self.root / name)

    def fingerprint(self) -> str:
        """Digest of names, content and division."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        contents = content_digest([self.root / name for name in self.files])
        return cache.digest("tree", self.fraction, *self.files, contents)


def _module_files(root: Path) -> list[str]:
    """The library's own modules, as sorted paths with forward slashes; empty files are left out."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        modules = [
            Path(folder) / name for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
        found += [path.relative_to(root).as_posix() for path in modules if path.stat().st_size]
    if not found:
        raise DataError(
            f"this interpreter has no standard library sources in {root}; use @dataset.text_files() on other text"
        )
    return sorted(found)


def _bounded(root: Path, names: list[str], max_bytes: int | None) -> list[str]:
    """As many of `names` as fit into max_bytes, drawn in the order of a hash, in their own order."""
    if max_bytes is None:
        return names
    left, taken = max_bytes, set()
    for name in sorted(names, key=lambda name: fraction_of(name, "max_bytes")):
        size = (root / name).stat().st_size
        if size <= left:
            taken.add(name)
            left -= size
    return [name for name in names if name in taken]
