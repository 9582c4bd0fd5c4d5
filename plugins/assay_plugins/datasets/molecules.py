"""Molecules with a measured number, from a table of SMILES such as ESOL's solubilities."""

import csv
import dataclasses
import functools
import io
import math
from pathlib import Path

import numpy as np

from assay.data import cache
from assay.data.arrays import Arrays
from assay.data.corpus import checked_split, decode_utf8, read_bytes
from assay.data.spec import DataSpec
from assay.errors import DataError
from assay_plugins.datasets.chemistry import FORM, graph_of
from assay_plugins.datasets.graphs import elements_of, stacked

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Molecules:
    """Graphs of atoms and bonds, each with a number `target`; by default ESOL's logarithm of the solubility in mol/L (Delaney 2004).

    `features` of atoms and `edge_features` of bonds are those of assay_plugins.datasets.chemistry. Graphs are padded to the largest. The
    table is divided at random: `validation_fraction` and `test_fraction` of its rows, rounded, and the rest to train. Needs rdkit:
    `pip install 'assay[graphs]'`.

    path: a .csv file with a header. smiles_column, target_column: names in it. seed: of the division.
    """

    path: str
    smiles_column: str = "smiles"
    target_column: str = "measured log solubility in mols per litre"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for fractions that leave a split empty."""
        for name in ("validation_fraction", "test_fraction"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be between 0 and 1")
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"validation_fraction + test_fraction = {self.validation_fraction + self.test_fraction}: must be less than 1"
            )

    def spec(self) -> DataSpec:
        """One molecule, of the size to which all are padded."""
        return DataSpec(elements_of(self._arrays(), stacked=True))

    def source(self, split: str) -> Arrays:
        """The molecules of "train", "validation" or "test"."""
        arrays = self._arrays()
        rows = self._rows(len(arrays["target"]))[checked_split(split, SPLITS)]
        return Arrays({name: values[rows] for name, values in arrays.items()})

    def fingerprint(self) -> str:
        """Digest of the table, of how it is read, and of the division."""
        settings = self.smiles_column, self.target_column, self.validation_fraction, self.test_fraction, self.seed
        return cache.digest("molecules", FORM, *settings, read_bytes(self._place))

    @property
    def _place(self) -> Path:
        return Path(self.path).expanduser()

    def _arrays(self) -> dict[str, np.ndarray]:
        return _read(read_bytes(self._place), self._place, self.smiles_column, self.target_column)

    def _rows(self, count: int) -> dict[str, np.ndarray]:
        """The rows of each split, in the table's order. Raises DataError for a table so small that one is empty."""
        order = np.random.Generator(np.random.PCG64(self.seed)).permutation(count)
        held_out = round(count * self.validation_fraction), round(count * self.test_fraction)
        parts = np.split(order, np.cumsum(held_out))
        if not all(len(part) for part in parts):
            raise DataError(
                f"{self._place} has {count} molecules, too few to divide; give more, or set larger fractions"
            )
        return {name: np.sort(part) for name, part in zip(("validation", "test", "train"), parts, strict=True)}


@functools.lru_cache(maxsize=4)
def _read(content: bytes, place: Path, smiles_column: str, target_column: str) -> dict[str, np.ndarray]:
    """All molecules of the table, padded. Raises DataError naming the line that cannot be read."""
    reader = csv.DictReader(io.StringIO(decode_utf8(content, place), newline=""))
    missing = [name for name in (smiles_column, target_column) if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{place} has no column {missing[0]!r}; it has {', '.join(map(repr, reader.fieldnames or ()))}")
    graphs, targets = [], []
    for row in reader:
        where = f"{place}:{reader.line_num}"
        graphs.append(graph_of((row[smiles_column] or "").strip(), where))
        targets.append(_number(row[target_column], target_column, where))
    if not graphs:
        raise DataError(f"{place} has no rows; give a table of molecules")
    return stacked(graphs) | {"target": np.asarray(targets, np.float32)}


def _number(text: str | None, column: str, where: str) -> float:
    """The number in a cell."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {column!r} is {text!r}, no number; mend or remove the row")
    return value
