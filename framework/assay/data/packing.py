"""Whole documents packed into rows of a fixed length: the plan, kept in the cache, and the source that follows it.

A document's predictions are pairs (token, next token). With a separator s they are those of `s d s`: every token of the document
from the first, and its end. Without one they are those of `d`, and a document of one token has none. Documents longer than a row are
cut into pieces that each fill a row, and a rest. Pieces are placed best fit decreasing: the longest first, each into the fullest
row that still holds it (Johnson, Demers, Ullman, Garey and Graham, SIAM J. Computing 3(4), 1974).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from assay.data import cache
from assay.data.tokens import Tokens
from assay.data.windows import IGNORED

LAYOUT = 1  # of a cache entry; part of its key


@dataclasses.dataclass(frozen=True)
class PackedDocuments:
    """Row i holds the pieces that the plan puts there. A Source with `segment_ids` (0 pads) and `positions` within each piece."""

    tokens: Tokens
    context: int

    def __len__(self) -> int:
        return len(self._plan[0]) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: values[0] for name, values in self.gather(np.asarray([index])).items()}

    def gather(self, indices: Int64[np.ndarray, " rows"]) -> dict[str, Any]:
        """`inputs`, `targets`, `segment_ids` and `positions`, int32 (rows, context), of the rows at `indices`."""
        first, starts, lengths = self._plan
        counts = first[indices + 1] - first[indices]
        pieces = np.repeat(first[indices], counts) + _within(counts)
        length, within = lengths[pieces], _within(lengths[pieces])
        source = np.repeat(starts[pieces], length) + within
        rows = np.repeat(np.repeat(np.arange(len(indices)), counts), length)
        filled = np.bincount(rows, minlength=len(indices))
        columns = _within(filled)
        found = {"inputs": (self.tokens.ids[source], 0), "targets": (self.tokens.ids[source + 1], IGNORED)}
        found |= {"segment_ids": (np.repeat(_within(counts) + 1, length), 0), "positions": (within, 0)}
        shape = (len(indices), self.context)
        return {
            name: _scattered(values, rows, columns, np.full(shape, pad, np.int32))
            for name, (values, pad) in found.items()
        }

    @functools.cached_property
    def _plan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first piece of each row and the number of pieces, start of each piece in the ids, its length in pairs)."""
        key = cache.digest("packing", LAYOUT, self.tokens.directory.name, self.tokens.separated, self.context)

        def build(directory: Path) -> None:
            for name, values in zip(("first", "starts", "lengths"), plan(self.tokens, self.context), strict=True):
                np.save(directory / f"{name}.npy", values)

        directory = cache.entry("packing", key, build)
        first, starts, lengths = (
            np.load(directory / f"{n}.npy", mmap_mode="r") for n in ("first", "starts", "lengths")
        )
        return np.asarray(first), np.asarray(starts), np.asarray(lengths)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def plan(tokens: Tokens, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each row's pieces are: (first, starts, lengths), all int64; row r holds the pieces first[r] to first[r + 1] - 1."""
    starts, lengths = _pieces(tokens, context)
    order = np.argsort(-lengths, kind="stable")
    rows = _best_fit(lengths[order], context)
    by_row = np.argsort(rows, kind="stable")
    counts = np.bincount(rows) if rows.size else np.zeros(0, np.int64)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return first, starts[order][by_row], lengths[order][by_row]


def _pieces(tokens: Tokens, context: int) -> tuple[np.ndarray, np.ndarray]:
    """(start in the ids, number of pairs) of every piece, in the documents' order."""
    separators = int(tokens.separated)
    starts = tokens.starts[:-1] - separators
    pairs = np.maximum(np.diff(tokens.starts) - 1 + separators, 0)
    counts = -(-pairs // context)
    offsets = _within(counts) * context
    return np.repeat(starts, counts) + offsets, np.minimum(np.repeat(pairs, counts) - offsets, context)


def _best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece, pieces given longest first. The rows' free space is indexed by a bit set, so a look-up is one operation."""
    free: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied = 0  # bit f is set where there are rows with f free places
    rows = np.empty(len(lengths), np.int64)
    count = 0
    for i, length in enumerate(lengths.tolist()):
        fitting = occupied >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = free[space].pop()
            if not free[space]:
                occupied ^= 1 << space
        else:
            space, row, count = capacity, count, count + 1
        rows[i] = row
        if left := space - length:
            free[left].append(row)
            occupied |= 1 << left
    return rows


def _within(counts: np.ndarray) -> np.ndarray:
    """0 … c - 1 for each c of `counts`, one after another: [2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if ends.size else 0) - np.repeat(ends - counts, counts)


def _scattered(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, into: np.ndarray) -> np.ndarray:
    into[rows, columns] = values
    return into
