"""What graph models need of a dataset's description, or a ConfigError that says which dataset would do."""

import dataclasses
import math

from assay.data.spec import DataSpec
from assay.errors import ConfigError

SPARSE = ("feature_node", "feature", "feature_value")


@dataclasses.dataclass(frozen=True)
class GraphTask:
    """Sizes of the data of graphs.

    inputs: features of a node. edge_inputs: features of an edge; 0 for none. outputs: classes, or numbers of a target.
    per_node: whether each node has a label; otherwise the graph has a label or a target.
    """

    inputs: int
    edge_inputs: int
    outputs: int
    per_node: bool


def graphs_of(spec: DataSpec, model: str) -> GraphTask:
    """The sizes. Raises ConfigError for data that are no graphs, or that have neither labels nor a target."""
    shapes = {name: element.shape for name, element in spec.elements.items()}
    sparse = all(name in shapes for name in SPARSE) and spec.vocab_size is not None
    dense = len(shapes.get("features", ())) == 2
    if not {"senders", "receivers", "node_mask"} <= shapes.keys() or not (sparse or dense):
        raise ConfigError(
            f"model.{model} needs a dataset of graphs; this one has {', '.join(f'{k} {v}' for k, v in shapes.items()) or 'no arrays'}. "
            "Choose one such as @dataset.planetoid(), @dataset.karate() or @dataset.molecules()"
        )
    edge_inputs = shapes["edge_features"][-1] if "edge_features" in shapes else 0
    inputs = shapes["features"][1] if dense else spec.vocab_size
    assert inputs is not None
    if "label" in shapes and spec.num_classes is not None:
        return GraphTask(inputs, edge_inputs, spec.num_classes, per_node=shapes["label"] == shapes["node_mask"])
    if "target" in shapes:
        return GraphTask(inputs, edge_inputs, math.prod(shapes["target"]), per_node=False)
    raise ConfigError(
        f"model.{model}: the dataset's graphs have neither `label` with a number of classes nor `target`; "
        "choose a dataset that has one of them"
    )
