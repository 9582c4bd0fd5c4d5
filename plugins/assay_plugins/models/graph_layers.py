"""Layers on graphs: graph convolution, graph attention, and GraphSAGE's mean of neighbours."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay_plugins.models.graphs import Features, Graph, dropped, product
from assay_plugins.models.layers import aligned, dropout, dropout_key

LEAK = 0.2  # slope of the leaky ReLU in the attention (Velickovic et al. 2018, section 2.1)

glorot = nnx.initializers.glorot_uniform()


class GraphLayer(Protocol):
    """States of nodes to states of nodes, along the edges."""

    def __call__(
        self, graph: Graph, x: Features, *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "batch nodes outputs"]:
        """x: the state of every node. rngs: for dropout, in training."""


class GCNLayer(nnx.Module):
    """D^(-1/2) (A + I) D^(-1/2) X W [+ b], D the row sums of A + I (Kipf and Welling 2017, arXiv:1609.02907, eq. 2).

    A self loop in the data is the I of its node, and not counted twice. inputs, outputs: {logical axis: size}. dropout: rate, of X.
    """

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], *, bias: bool, dropout: float, rngs: nnx.Rngs
    ) -> None:
        self.dropout = dropout
        self.kernel = _kernel(inputs, outputs, rngs)
        self.bias = _zeros(outputs) if bias else None

    def __call__(
        self, graph: Graph, x: Features, *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "batch nodes outputs"]:
        """x: the state of every node. rngs: for dropout, in training."""
        graph = graph.without_loops()
        y = product(dropped(x, self.dropout, dropout_key(self.dropout, train, rngs)), self.kernel[...])
        scale = jax.lax.rsqrt(1.0 + graph.degrees())[..., None].astype(y.dtype)
        y = y * scale
        y = (graph.summed(graph.from_senders(y)) + y) * scale
        return y if self.bias is None else y + aligned(self.bias[...], y.ndim)


class GATLayer(nnx.Module):
    """For each head, sum over j of a_ij W x_j, j the neighbours of i and i itself (Velickovic et al. 2018, arXiv:1710.10903, eq. 4-6).

    a_ij = softmax over j of LeakyReLU(u . W x_i + v . W x_j), in fp32; the paper's vector a is u and v, one after the other.
    kernel: (inputs, heads, width). receiver (u), sender (v): (heads, width). Heads are put one beside the other, or averaged, and a bias
    added. inputs: of the first dimension. outputs: {logical axis: width}. dropout: rate, of the inputs and of a_ij.
    """

    def __init__(
        self, inputs: int, heads: int, outputs: dict[str, int], *, average: bool, dropout: float, rngs: nnx.Rngs
    ) -> None:
        ((axis, width),) = outputs.items()
        self.average, self.dropout = average, dropout
        # Heads share no output, so each has the spread of a map of its own; its two vectors are maps to one number.
        by_head = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=2, batch_axis=1)
        self.kernel = nnx.Param(by_head(rngs.params(), (inputs, heads, width)), axes=("features", "heads", axis))
        limit = math.sqrt(6 / (width + 1))
        receiver, sender = limit * jax.random.uniform(rngs.params(), (2, heads, width), minval=-1.0)
        self.receiver, self.sender = (nnx.Param(v, axes=("heads", axis)) for v in (receiver, sender))
        self.bias = _zeros(outputs if average else {"heads": heads, axis: width})

    def __call__(
        self, graph: Graph, x: Features, *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "batch nodes outputs"]:
        """x: the state of every node. rngs: for dropout, in training. Gives heads * width numbers for each node, or width if averaged."""
        graph = graph.with_loops()
        kernel = self.kernel[...]
        inputs, heads, width = kernel.shape
        x = dropped(x, self.dropout, dropout_key(self.dropout, train, rngs))
        y = product(x, kernel.reshape(inputs, heads * width))
        y = y.reshape(*y.shape[:2], heads, width)
        weights = dropout(self.attention(graph, y), self.dropout, dropout_key(self.dropout, train, rngs))
        y = graph.summed(graph.from_senders(y) * weights[..., None].astype(y.dtype))
        y = jnp.mean(y, axis=2) if self.average else y
        y = y + aligned(self.bias[...], y.ndim)
        return y.reshape(*y.shape[:2], -1)

    def attention(self, graph: Graph, y: Float[Array, "batch nodes heads width"]) -> Float[Array, "batch edges heads"]:
        """a_ij of each edge of a graph with loops, for y = W x; fp32."""
        at_receiver, at_sender = (
            jnp.sum((y * aligned(vector[...], y.ndim)).astype(jnp.float32), axis=-1)
            for vector in (self.receiver, self.sender)
        )
        scores = jax.nn.leaky_relu(graph.from_receivers(at_receiver) + graph.from_senders(at_sender), LEAK)
        top = jax.lax.stop_gradient(graph.greatest(scores))
        powers = jnp.exp(scores - graph.from_receivers(top))
        total = graph.from_receivers(graph.summed(powers))
        return powers / jnp.where(total > 0, total, 1.0)  # every node has its loop; padding edges look up 0


class SAGELayer(nnx.Module):
    """W [x_i ; mean over neighbours j of x_j] + b, W in two parts (Hamilton et al. 2017, arXiv:1706.02216, algorithm 1, lines 4-5).

    All neighbours count, where the paper draws some of them; the mean of none is 0. With edge features e_ij, the mean is of [x_j ; e_ij].
    inputs, outputs: {logical axis: size}. edge_inputs: features of an edge, 0 for none. dropout: rate, of x.
    """

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], *, edge_inputs: int, dropout: float, rngs: nnx.Rngs
    ) -> None:
        self.dropout = dropout
        self.own, self.neighbours = (_kernel(inputs, outputs, rngs) for _ in range(2))
        self.edges = (
            nnx.Param(glorot(rngs.params(), (edge_inputs, *outputs.values())), axes=(None, *outputs))
            if edge_inputs
            else None
        )
        self.bias = _zeros(outputs)

    def __call__(
        self, graph: Graph, x: Features, *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "batch nodes outputs"]:
        """x: the state of every node. rngs: for dropout, in training."""
        x = dropped(x, self.dropout, dropout_key(self.dropout, train, rngs))
        own = product(x, self.own[...])
        messages = graph.from_senders(product(x, self.neighbours[...]))
        if self.edges is not None:
            assert graph.edge_features is not None
            messages = messages + product(graph.edge_features, self.edges[...])
        count = jnp.maximum(graph.degrees(), 1.0)[..., None].astype(own.dtype)
        return own + graph.summed(messages) / count + aligned(self.bias[...], own.ndim)


def _kernel(inputs: dict[str, int], outputs: dict[str, int], rngs: nnx.Rngs) -> nnx.Param[Array]:
    return nnx.Param(glorot(rngs.params(), (*inputs.values(), *outputs.values())), axes=(*inputs, *outputs))


def _zeros(outputs: dict[str, int]) -> nnx.Param[Array]:
    return nnx.Param(jnp.zeros(tuple(outputs.values()), jnp.float32), axes=tuple(outputs))
