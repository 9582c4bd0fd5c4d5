"""Weights set to zero: the smallest of each kernel, or two of every four."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from assay.errors import ExportError
from assay.exported import Exported
from assay_export.transforms.matrices import Matrix, changed, matrices

FOUR, KEPT = 4, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """Weights of least magnitude become 0 (Han et al. 2015, arXiv:1506.02626, without training after it); shapes and dtypes stay.

    pattern: magnitude, the share `sparsity` of each kernel; 2:4, two of every four consecutive inputs of each output, which sparse tensor
        cores skip (Mishra et al. 2021, arXiv:2104.08378). sparsity: of each kernel, for magnitude; 2:4 has one half.
    skip: parts that stay, such as 'head' or 'mlp/down'.
    """

    pattern: Literal["magnitude", "2:4"] = "magnitude"
    sparsity: float = 0.5
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a share out of range."""
        if not 0.0 < self.sparsity < 1.0:
            raise ValueError(f"sparsity = {self.sparsity}: must be between 0 and 1")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"sparsity = {self.sparsity}: is 0.5 with pattern = '2:4'")

    def apply(self, source: Exported) -> Exported:
        """The same programs of the pruned weights. Raises ExportError where no kernel can be pruned."""
        found, fitting = matrices(source, self.skip), self._fitting(source)
        if not fitting:
            raise ExportError("no kernel can be pruned: there is none, or four divides none of their inputs")
        pruned = {path: self._pruned(np.asarray(source.weights[path]), m) for path, m in fitting.items()}
        left = sorted(found.keys() - fitting.keys())
        notes = [f"prune: {path} stays as it is, four does not divide its {found[path].rows} inputs" for path in left]
        return dataclasses.replace(source, weights=changed(source.weights, pruned), notes=[*source.notes, *notes])

    def bounds(self, source: Exported) -> Iterator[tuple[str, np.ndarray]]:
        """The largest of the share of a kernel that is set to zero, or the second smallest of each four."""
        for path, matrix in self._fitting(source).items():
            size = np.abs(matrix.flat(np.asarray(source.weights[path])).astype(np.float32))
            if self.pattern == "2:4":
                fours = np.sort(size.reshape(len(size), -1, FOUR, size.shape[-1]), axis=2)
                most = np.repeat(fours[:, :, FOUR - KEPT - 1 : FOUR - KEPT], FOUR, axis=2)
            else:
                flat = np.sort(size.reshape(len(size), -1), axis=1)
                count = int(self.sparsity * flat.shape[1])
                most = np.broadcast_to((flat[:, count - 1] if count else 0 * flat[:, 0])[:, None, None], size.shape)
            yield path, most.reshape(matrix.shape)

    def _fitting(self, source: Exported) -> dict[str, Matrix]:
        """The kernels that are pruned."""
        found = matrices(source, self.skip)
        return {path: m for path, m in found.items() if self.pattern == "magnitude" or m.rows % FOUR == 0}

    def _pruned(self, weight: np.ndarray, matrix: Matrix) -> np.ndarray:
        size = np.abs(matrix.flat(weight).astype(np.float32))
        kept = _two_of_four(size) if self.pattern == "2:4" else _largest(size, self.sparsity)
        return np.where(kept.reshape(weight.shape), weight, np.zeros((), weight.dtype))


def _largest(size: np.ndarray, sparsity: float) -> np.ndarray:
    """Where each matrix of a stack has its largest elements: all but the share `sparsity`, rounded down, of which ties fall in order."""
    flat = size.reshape(len(size), -1)
    kept = np.ones(flat.shape, bool)
    order = np.argsort(flat, axis=1, kind="stable")
    np.put_along_axis(kept, order[:, : int(sparsity * flat.shape[1])], False, axis=1)
    return kept


def _two_of_four(size: np.ndarray) -> np.ndarray:
    """Where each four consecutive k of each column have their two largest."""
    stack, rows, columns = size.shape
    fours = size.reshape(stack, rows // FOUR, FOUR, columns)
    kept = np.zeros(fours.shape, bool)
    order = np.argsort(-fours, axis=2, kind="stable")
    np.put_along_axis(kept, order[:, :, :KEPT], True, axis=2)
    return kept.reshape(size.shape)
