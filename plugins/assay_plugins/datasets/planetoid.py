"""Citation graphs with the standard ("Planetoid") splits: Cora, Citeseer and PubMed, from a file that the user gives."""

import dataclasses
import functools
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from assay.data import cache
from assay.data.corpus import checked_split, read_bytes
from assay.data.spec import DataSpec
from assay.errors import DataError
from assay_plugins.datasets.graphs import OneGraph, both_ways, elements_of, kept, only

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # ours -> the file's
ARRAYS = ("x_data", "x_indices", "x_indptr", "x_shape", "y", "y_known", "edges", *SPLITS.values())
FORM = 1  # of the examples made of a file; part of the fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planetoid:
    """A citation graph, whose papers are to be classified (Sen et al. 2008; splits of Yang et al. 2016, arXiv:1603.08861).

    Every split has one example, the whole graph, and keeps the labels of its own papers alone: 20 of each class to train, 500 to
    validate, 1,000 to test; all other labels are -1. The words of a paper sum to 1, as Kipf and Welling 2017 have them; edges have no
    direction. Train with experiment.batch_size = 1.

    path: a .npz file with `x_data`, `x_indices`, `x_indptr`, `x_shape` (the words of papers, compressed rows), `y` (papers,), `y_known`
        (papers,), False where there is no label, `edges` (2, edges), each once, and the papers of `train`, `val` and `test`.
    """

    path: str

    def spec(self) -> DataSpec:
        """The graph; vocab_size is the number of words."""
        graph = _read(*_identity(self.path))
        elements = elements_of(graph.arrays | {"label": graph.labels}, stacked=False)
        papers = len(graph.labels)
        return DataSpec(
            elements,
            vocab_size=graph.words,
            num_classes=int(graph.labels.max()) + 1,
            units_per_example=papers,
            unit="nodes",
        )

    def source(self, split: str) -> OneGraph:
        """The graph with the labels of "train", "validation" or "test"."""
        name = SPLITS[checked_split(split, SPLITS)]
        graph = _read(*_identity(self.path))
        return OneGraph(graph.arrays | {"label": only(graph.labels, graph.splits[name])})

    def fingerprint(self) -> str:
        """Digest of the file."""
        return cache.digest("planetoid", FORM, read_bytes(Path(self.path)))


@dataclasses.dataclass(frozen=True)
class _Citations:
    """What is in a file. arrays: those that all splits share. labels: int32 (papers,), -1 for none. splits: papers by name."""

    arrays: dict[str, np.ndarray]
    labels: np.ndarray
    splits: dict[str, np.ndarray]
    words: int


def _identity(path: str) -> tuple[Path, int, int]:
    """(path, time of change, size): what is read once and kept, until the file changes."""
    place = Path(path).expanduser()
    try:
        status = place.stat()
    except OSError as error:
        raise DataError(
            f"dataset.planetoid.path: cannot read {place}: {error.strerror}; give the path of cora.npz or one like it"
        ) from error
    return place, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=8)
def _read(place: Path, changed: int, size: int) -> _Citations:
    """The graph in a file. Raises DataError when it is damaged. Nothing is unpickled."""
    found = _loaded(place)
    papers, words = (int(n) for n in found["x_shape"])
    _check(place, found, papers, words)
    starts = found["x_indptr"]
    node = np.repeat(np.arange(papers, dtype=np.int32), np.diff(starts))
    value = found["x_data"].astype(np.float32)
    total = np.bincount(node, weights=value, minlength=papers)
    labels = np.where(found["y_known"], found["y"], -1).astype(np.int32)
    arrays = {
        "feature_node": node,
        "feature": found["x_indices"].astype(np.int32),
        "feature_value": (value / np.where(total > 0, total, 1)[node]).astype(np.float32),
        **both_ways(found["edges"]),
        "node_mask": np.ones(papers, np.bool_),
    }
    return _Citations(kept(arrays), labels, {name: found[name] for name in SPLITS.values()}, words)


def _loaded(place: Path) -> dict[str, np.ndarray]:
    """The arrays of the file."""
    try:
        with np.load(io.BytesIO(read_bytes(place)), allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise DataError(f"{place} has no array {', '.join(missing)}; it needs {', '.join(ARRAYS)}")
            return {name: file[name] for name in ARRAYS}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{place} is no .npz file of plain arrays, or is damaged: {error}; get it again") from error


def _check(place: Path, found: dict[str, np.ndarray], papers: int, words: int) -> None:
    """Raise DataError for arrays that do not fit one another."""
    starts, entries = found["x_indptr"], len(found["x_data"])
    problems = {
        "x_indptr does not divide x_data into rows": len(starts) != papers + 1
        or starts[0] != 0
        or starts[-1] != entries
        or np.any(np.diff(starts) < 0),
        "x_indices has another length than x_data": len(found["x_indices"]) != entries,
        f"x_indices has a word beyond {words}": _beyond(found["x_indices"], words),
        "x_data has values that are negative or not finite": not np.all(
            (found["x_data"] >= 0) & (found["x_data"] < np.inf)
        ),
        f"edges is not (2, edges) of papers below {papers}": found["edges"].shape[:1] != (2,)
        or _beyond(found["edges"], papers),
        f"y or y_known is not ({papers},)": {found["y"].shape, found["y_known"].shape} != {(papers,)},
        f"a split has a paper beyond {papers}": any(_beyond(found[name], papers) for name in SPLITS.values()),
    }
    wrong = [message for message, is_so in problems.items() if is_so]
    if wrong:
        raise DataError(f"{place} is damaged: {'; '.join(wrong)}; get it again")


def _beyond(values: np.ndarray, end: int) -> bool:
    """Whether a value is not in [0, end)."""
    return bool(np.any((values < 0) | (values >= end)))
