"""Graph neural networks: GCN, GAT and GraphSAGE, for the labels of nodes, and for labels or numbers of whole graphs."""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.checks import at_least, fraction
from assay_plugins.models.graph_layers import GATLayer, GCNLayer, GraphLayer, SAGELayer, glorot
from assay_plugins.models.graph_specs import GraphTask, graphs_of
from assay_plugins.models.graphs import Features, Graph, SparseFeatures, pooled, unit_length
from assay_plugins.models.layers import Linear, dropout, dropout_key

Activation = Callable[[Float[Array, "batch nodes width"]], Float[Array, "batch nodes width"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphModel(abc.ABC):
    """What the three models share. Where nodes have labels, a last layer of the same kind gives each node's logits; where graphs have a
    label or a target, the states of a graph's nodes are pooled, and a linear map gives its logits or the prediction.

    hidden: widths of the hidden layers, from the input on. dropout: rate on the input of every layer, in training.
    pooling: of a graph's nodes, the mean or the sum; without meaning where nodes have labels.
    """

    hidden: Sequence[int] = (16,)
    dropout: float = 0.5
    pooling: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if not self.hidden:
            raise ValueError(f"hidden = {self.hidden}: there must be at least one hidden layer")
        for width in self.hidden:
            at_least(1, hidden=width)
        fraction("dropout", self.dropout)

    @abc.abstractmethod
    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "GraphNetwork":
        """The network for data of graphs. Raises ConfigError for other data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GCN(GraphModel):
    """Graph convolutional network (Kipf and Welling 2017, arXiv:1609.02907), relu between layers. The defaults are the paper's.

    hidden: widths of the hidden layers, from the input on. dropout: rate on the input of every layer, in training.
    pooling: of the nodes, where a graph has a label or a target. bias: in every layer; the paper has none. Edge features are not read.
    """

    bias: bool = False

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "GraphNetwork":
        """The network for data of graphs. Raises ConfigError for other data."""
        task = graphs_of(spec, "gcn")
        layer = functools.partial(GCNLayer, bias=self.bias, dropout=self.dropout, rngs=rngs)
        layers = [layer(inputs, outputs) for inputs, outputs in _maps(self.hidden, task)]
        return GraphNetwork(self, task, layers, jax.nn.relu, self.hidden[-1], rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GAT(GraphModel):
    """Graph attention network (Velickovic et al. 2018, arXiv:1710.10903), elu between layers. The defaults are the paper's for Cora.

    hidden: widths of one head in the hidden layers, from the input on. heads: of each hidden layer, put one beside the other.
    output_heads: of the last layer where nodes have labels, averaged (8 in the paper for PubMed). dropout: rate on the input of every
    layer and on the attention, in training. pooling: of the nodes, where a graph has a label or a target. Edge features are not read.
    """

    hidden: Sequence[int] = (8,)
    dropout: float = 0.6
    heads: int = 8
    output_heads: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        super().__post_init__()
        at_least(1, heads=self.heads, output_heads=self.output_heads)

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "GraphNetwork":
        """The network for data of graphs. Raises ConfigError for other data."""
        task = graphs_of(spec, "gat")
        layer = functools.partial(GATLayer, dropout=self.dropout, rngs=rngs)
        widths = [task.inputs, *(self.heads * width for width in self.hidden)]
        layers = [
            layer(inputs, self.heads, {"head_dim": width}, average=False)
            for inputs, width in zip(widths, self.hidden, strict=False)
        ]
        if task.per_node:
            layers.append(layer(widths[-1], self.output_heads, {"classes": task.outputs}, average=True))
        return GraphNetwork(self, task, layers, jax.nn.elu, widths[-1], rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSAGE(GraphModel):
    """GraphSAGE with the mean of all neighbours (Hamilton et al. 2017, arXiv:1706.02216), relu between layers.

    hidden: widths of the hidden layers, from the input on. dropout: rate on the input of every layer, in training.
    pooling: of the nodes, where a graph has a label or a target. normalize: hidden states get length 1 (algorithm 1, line 7).
    Edge features, where the data have them, go with the neighbour that they lead to.
    """

    normalize: bool = True

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "GraphNetwork":
        """The network for data of graphs. Raises ConfigError for other data."""
        task = graphs_of(spec, "graphsage")
        layer = functools.partial(SAGELayer, edge_inputs=task.edge_inputs, dropout=self.dropout, rngs=rngs)
        layers = [layer(inputs, outputs) for inputs, outputs in _maps(self.hidden, task)]
        return GraphNetwork(self, task, layers, _unit_relu if self.normalize else jax.nn.relu, self.hidden[-1], rngs)


class GraphNetwork(nnx.Module):
    """The network of the three models."""

    def __init__(
        self,
        options: GraphModel,
        task: GraphTask,
        layers: Sequence[GraphLayer],
        activation: Activation,
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.options, self.task, self.activation = options, task, activation
        self.layers = nnx.List(layers)
        outputs = {"classes": task.outputs}
        self.head = None if task.per_node else Linear({"features": width}, outputs, init=glorot, bias=True, rngs=rngs)

    def __call__(self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Float[Array, "batch ..."]:
        """Logits (batch, nodes, classes) of nodes, logits (batch, classes) of graphs, or numbers (batch, outputs) of graphs.

        batch: `features` (batch, nodes, features), or in their place `feature_node`, `feature` and `feature_value` (batch, entries);
        `senders` and `receivers` (batch, edges), -1 in padding; `node_mask` (batch, nodes); `edge_features` (batch, edges, channels).
        rngs: for dropout, in training.
        """
        graph = _graph(batch)
        first, *others = self.layers
        x = first(graph, _features(batch), train=train, rngs=rngs)
        for layer in others:
            x = layer(graph, self._activated(x), train=train, rngs=rngs)
        if self.head is None:
            return x
        rate = self.options.dropout
        x = pooled(self._activated(x), graph, mean=self.options.pooling == "mean")
        return self.head(dropout(x, rate, dropout_key(rate, train, rngs)))

    def _activated(self, x: Float[Array, "batch nodes width"]) -> Float[Array, "batch nodes width"]:
        return constrain(self.activation(x), "batch", None, None)


def _maps(hidden: Sequence[int], task: GraphTask) -> list[tuple[dict[str, int], dict[str, int]]]:
    """(inputs, outputs) of each layer by logical axis: "features" and "mlp" by turns, to be divided by columns, then by rows."""
    sizes = [task.inputs, *hidden]
    groups = [{"features" if i % 2 == 0 else "mlp": size} for i, size in enumerate(sizes)]
    outputs = [{"classes": task.outputs}] if task.per_node else []
    return [*itertools.pairwise([*groups, *outputs])]


def _unit_relu(x: Float[Array, "batch nodes width"]) -> Float[Array, "batch nodes width"]:
    return unit_length(jax.nn.relu(x))


def _graph(batch: Batch) -> Graph:
    """The batch's edges, padding moved from -1 to beyond the last node."""
    mask = batch["node_mask"]
    senders, receivers = (jnp.where(batch[end] < 0, mask.shape[1], batch[end]) for end in ("senders", "receivers"))
    return Graph(senders, receivers, mask, batch.get("edge_features"))


def _features(batch: Batch) -> Features:
    """The nodes' features in either form."""
    if "features" in batch:
        return batch["features"]
    nodes = batch["node_mask"].shape[1]
    node = jnp.where(batch["feature_node"] < 0, nodes, batch["feature_node"])
    return SparseFeatures(node, batch["feature"], batch["feature_value"], nodes)
