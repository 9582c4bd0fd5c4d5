"""What datasets of graphs share: one graph as the only example of a split, labels by split, and graphs padded to one size.

The arrays of an example: `node_mask` bool (nodes,); `senders` and `receivers` int32 (edges,), -1 in padding, an edge without direction
given in both; `features` float32 (nodes, features), or, where most are 0, `feature_node`, `feature` and `feature_value` (entries,).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int64

from assay.data.spec import ArraySpec

PADDING = -1


@dataclasses.dataclass(frozen=True)
class OneGraph:
    """A Source of one example; every epoch, and with full batches every step, reads it anew, without a copy."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index != 0:
            raise IndexError(f"example {index}: there is one graph, number 0")
        return dict(self.arrays)

    def gather(self, indices: Int64[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """The graph in each of the rows, as views of the same memory."""
        return {name: np.broadcast_to(values, (len(indices), *values.shape)) for name, values in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Molecule:
    """A graph before padding: features (nodes, …), senders and receivers (edges,), edge_features (edges, …)."""

    features: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    edge_features: np.ndarray


def elements_of(arrays: Mapping[str, np.ndarray], *, stacked: bool) -> dict[str, ArraySpec]:
    """The specification of examples with these arrays; stacked: their first axis is that of examples."""
    return {name: ArraySpec(v.shape[1:] if stacked else v.shape, v.dtype.name) for name, v in arrays.items()}


def only(labels: Int[np.ndarray, " nodes"], nodes: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " nodes"]:
    """The labels of the chosen nodes as int32, -1 for all others: these do not count."""
    kept = np.full(labels.shape, PADDING, np.int32)
    kept[nodes] = labels[nodes]
    return kept


def kept(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays, which from now on nobody can change: they are in every batch, for as long as the process lives."""
    for values in arrays.values():
        values.flags.writeable = False
    return arrays


def both_ways(edges: Int[np.ndarray, "two edges"]) -> dict[str, np.ndarray]:
    """`senders` and `receivers`, int32, of edges without direction: each there and back, a loop once."""
    back = edges[::-1, edges[0] != edges[1]]
    senders, receivers = np.concatenate([edges, back], axis=1).astype(np.int32)
    return {"senders": senders, "receivers": receivers}


def stacked(graphs: Sequence[Molecule]) -> dict[str, np.ndarray]:
    """The graphs' arrays (graphs, …), padded to the largest number of nodes and of edges."""
    nodes, edges = (
        max(len(v) for v in values) for values in zip(*((g.features, g.senders) for g in graphs), strict=True)
    )
    return {
        "features": np.stack([_filled(g.features, nodes, 0) for g in graphs]),
        "senders": np.stack([_filled(g.senders, edges, PADDING) for g in graphs]),
        "receivers": np.stack([_filled(g.receivers, edges, PADDING) for g in graphs]),
        "edge_features": np.stack([_filled(g.edge_features, edges, 0) for g in graphs]),
        "node_mask": np.stack([np.arange(nodes) < len(g.features) for g in graphs]),
    }


def _filled(values: np.ndarray, rows: int, value: int) -> np.ndarray:
    """`values` with rows of `value` up to `rows` rows."""
    padded = np.full((rows, *values.shape[1:]), value, values.dtype)
    padded[: len(values)] = values
    return padded
