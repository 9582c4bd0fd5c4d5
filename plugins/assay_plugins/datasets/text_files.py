"""Text from files: plain text, JSON lines, or the sources of an installed package."""

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from assay.data import cache
from assay.data.contents import content_digest
from assay.data.corpus import checked_fraction, decode_utf8, fraction_of, read_bytes
from assay.data.files import expand
from assay.data.text import TextDataset
from assay.errors import DataError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles(TextDataset):
    """Text files in UTF-8. Options of all text datasets (tokenizer, context, packing, stride): see `TextDataset`.

    files: paths or globs (`**` for any depth, `~` for home), read in sorted order. A file is one document; in a `.jsonl` file each
        line is one, an object whose `text_field` is the text.
    package: instead of files, the `.py` files of an installed package, such as "jax"; empty ones are left out.
    validation_files: the documents held out, as paths or globs. Without them, `validation_fraction` of the text is held out:
    split_by: "position" the last characters of all documents joined (the first int(n * (1 - validation_fraction)) of n train),
        "document" whole documents, drawn by a hash of their text, so that copies of one document are on the same side.
    """

    files: str | Sequence[str] = ()
    package: str | None = None
    validation_files: str | Sequence[str] | None = None
    validation_fraction: float = 0.1
    split_by: Literal["position", "document"] = "position"
    text_field: str = "text"

    def __post_init__(self) -> None:
        """Raise ValueError for settings that cannot be."""
        super().__post_init__()
        checked_fraction("validation_fraction", self.validation_fraction)
        if bool(self.files) == (self.package is not None):
            raise ValueError("give either files or package")

    def corpus(self) -> "FileCorpus":
        """The files found. Raises DataError when a pattern matches none."""
        paths = _sources_of(self.package) if self.package else expand(self.files)
        held_out = None if self.validation_files is None else expand(self.validation_files)
        return FileCorpus(
            tuple(paths), held_out and tuple(held_out), self.validation_fraction, self.split_by, self.text_field
        )


@dataclasses.dataclass(frozen=True)
class FileCorpus:
    """Documents of files, with a part held out. See `TextFiles` for the fields."""

    paths: Sequence[Path]
    held_out: Sequence[Path] | None
    fraction: float
    split_by: str
    text_field: str
    splits: Sequence[str] = ("train", "validation")

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split."""
        if self.held_out is not None:
            return self._read(self.paths if split == "train" else self.held_out)
        if self.split_by == "document":
            held_out = split == "validation"
            return (d for d in self._read(self.paths) if (fraction_of(d, "validation") < self.fraction) == held_out)
        cut = int(self._characters * (1 - self.fraction))
        return _between(self._read(self.paths), *((0, cut) if split == "train" else (cut, self._characters)))

    def fingerprint(self) -> str:
        """Digest of the files' content and of how it is divided; the files' names do not matter, but their order does."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        held_out = self.held_out or ()
        rule = ("files",) if self.held_out is not None else (self.split_by, self.fraction)
        lines = [path.suffix == ".jsonl" for path in (*self.paths, *held_out)]
        field = self.text_field if any(lines) else None
        contents = content_digest(self.paths), content_digest(held_out)
        return cache.digest("files", *rule, field, len(self.paths), *lines, *contents)

    @functools.cached_property
    def _characters(self) -> int:
        return sum(len(document) for document in self._read(self.paths))

    def _read(self, paths: Sequence[Path]) -> Iterator[str]:
        for path in paths:
            if path.suffix == ".jsonl":
                yield from _json_lines(path, self.text_field)
            else:
                yield decode_utf8(read_bytes(path), path)


def _sources_of(package: str) -> list[Path]:
    """The package's Python files that are not empty, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise DataError(f"there is no installed package '{package}'; install it, or give files")
    roots = [Path(location) for location in spec.submodule_search_locations]
    found = sorted(path for root in roots for path in root.rglob("*.py") if path.stat().st_size)
    if not found:
        raise DataError(f"package '{package}' has no Python sources in {', '.join(map(str, roots))}")
    return found


def _json_lines(path: Path, text_field: str) -> Iterator[str]:
    """The texts of a file of JSON objects, one a line; blank lines are passed over."""
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}; mend or remove the line") from error
        if not isinstance(value, dict) or not isinstance(value.get(text_field), str):
            known = list(value) if isinstance(value, dict) else []
            raise DataError(
                f"{where} has no text in field '{text_field}' (its fields: {', '.join(known) or 'none'}); set text_field."
                + did_you_mean(text_field, known)
            )
        yield value[text_field]


def _between(documents: Iterator[str], start: int, stop: int) -> Iterator[str]:
    """The parts of `documents` that lie within the characters [start, stop) of all of them joined."""
    place = 0
    for document in documents:
        part = document[max(0, start - place) : max(0, stop - place)]
        if part:
            yield part
        place += len(document)
