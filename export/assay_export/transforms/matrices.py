"""Which weights are matrices, and which of their dimensions are summed over: what quantisation and pruning go by."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from assay.exported import FLOATS, Exported
from assay.network import make_network

Axes = tuple[str | None, ...]
EXPERTS = ("gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """How an array of `shape` is a stack of matrices (K, N), the first `stacked` dimensions counting them and `inputs` more making up K."""

    shape: tuple[int, ...]
    stacked: int
    inputs: int

    @property
    def rows(self) -> int:
        """K: how many inputs each output is a sum over."""
        return math.prod(self.shape[self.stacked : self.stacked + self.inputs])

    def flat(self, array: Any) -> Any:
        """(stack, K, N)."""
        return array.reshape(math.prod(self.shape[: self.stacked]), self.rows, -1)


def matrices(source: Exported, skip: tuple[str, ...]) -> dict[str, Matrix]:
    """Path -> matrix of every floating point kernel but those with one of `skip` in their path.

    Embeddings, norms, biases, routers and depthwise filters are none. Without the model, as of an artifact, each kernel's first dimension
    counts as its inputs.
    """
    axes = axes_of(source)
    found = {}
    for path, weight in source.weights.items():
        if str(weight.dtype) in FLOATS and not skipped(path, skip):
            matrix = _matrix(path, tuple(weight.shape), axes.get(path))
            if matrix is not None:
                found[path] = matrix
    return found


def axes_of(source: Exported) -> dict[str, Axes]:
    """Path -> logical axes of each parameter; nothing without the model."""
    if source.model is None:
        return {}
    network = make_network(source.model, source.spec)
    return dict(_leaves({**network.axes, **network.frozen_axes}))


def skipped(path: str, skip: tuple[str, ...]) -> bool:
    """Whether a name is a part of the path: "mlp/up" is one of "blocks/0/mlp/up/kernel"."""
    return any(f"/{name}/" in f"/{path}/" for name in skip)


def changed(weights: Mapping[str, Any], changes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The weights, some of them replaced."""
    return {path: changes.get(path, weight) for path, weight in weights.items()}


def _matrix(path: str, shape: tuple[int, ...], axes: Axes | None) -> Matrix | None:
    name = path.rsplit("/", 1)[-1]
    if name in EXPERTS and len(shape) == 3:
        return Matrix(shape, 1, 1)
    if name != "kernel" or len(shape) < 2:
        return None
    if axes is None:
        return Matrix(shape, 0, 1)
    if "conv_in" in axes:
        return Matrix(shape, 0, axes.index("conv_in") + 1)
    if axes[0] is None:
        return None
    return Matrix(shape, 0, 2 if axes[:2] == ("heads", "head_dim") and len(axes) > 2 else 1)


def _leaves(tree: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, Axes]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{parents}{name}/")
        else:
            yield f"{parents}{name}", value
