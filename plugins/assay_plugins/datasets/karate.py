"""Zachary's karate club: 34 members, and the two clubs that they became. It comes with networkx."""

import dataclasses
import functools
from typing import Any

import numpy as np

from assay.data import cache
from assay.data.corpus import checked_split
from assay.data.spec import DataSpec
from assay.errors import PluginError
from assay_plugins.datasets.graphs import OneGraph, both_ways, elements_of, kept, only

SPLITS = ("train", "validation")
LEADERS = (0, 33)  # the instructor, "Mr. Hi", and the president of the club, "Officer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Karate:
    """The friendships of a karate club before it broke apart (Zachary 1977), each member's feature its number, as one-hot.

    The label is the club that a member joined, 0 with the instructor and 1 with the president. Training has the labels of these two
    alone, validation those of the other 32; one example, the whole graph. (The appendix of Kipf and Welling 2017 has the same setting with
    four communities found by modularity in place of the two clubs.) Needs networkx: `pip install 'assay[graphs]'`.
    """

    def spec(self) -> DataSpec:
        """The graph."""
        arrays, labels = _club()
        elements = elements_of(arrays | {"label": labels}, stacked=False)
        return DataSpec(elements, num_classes=2, units_per_example=len(labels), unit="nodes")

    def source(self, split: str) -> OneGraph:
        """The graph with the labels of "train" or "validation"."""
        arrays, labels = _club()
        leaders = np.isin(np.arange(len(labels)), LEADERS)
        chosen = leaders if checked_split(split, SPLITS) == "train" else ~leaders
        return OneGraph(arrays | {"label": only(labels, np.flatnonzero(chosen))})

    def fingerprint(self) -> str:
        """Digest of the graph."""
        arrays, labels = _club()
        return cache.digest("karate", arrays["senders"].tobytes(), arrays["receivers"].tobytes(), labels.tobytes())


@functools.cache
def _club() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(the arrays that both splits share, int32 (34,) clubs)."""
    graph = _networkx().karate_club_graph()
    members = sorted(graph.nodes)
    labels = np.asarray([graph.nodes[member]["club"] != "Mr. Hi" for member in members], np.int32)
    edges = both_ways(np.asarray(sorted(graph.edges), np.int32).T)
    features = np.eye(len(members), dtype=np.float32)
    return kept({"features": features, **edges, "node_mask": np.ones(len(members), np.bool_)}), labels


def _networkx() -> Any:
    try:
        import networkx  # an optional package
    except ImportError as error:
        raise PluginError("dataset.karate needs networkx: pip install 'assay[graphs]'") from error
    return networkx
