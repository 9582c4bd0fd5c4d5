"""Batches of padded graphs: edges and node features, and the sums and look-ups over edges that layers are made of.

All arrays have a leading batch axis, and each graph's edges stay within it: a batch is one large graph of parts that do not touch,
written so that a mesh can divide it among devices without a word between them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from assay_plugins.models.layers import dropout, flat_product

NO_NORM = 1e-24  # a squared norm below it is taken for 0


@dataclasses.dataclass(frozen=True)
class Graph:
    """The edges and nodes of a batch. Padding edges have senders and receivers `nodes`, which no sum and no look-up reaches.

    A message goes from an edge's sender to its receiver; an edge without direction is two.
    """

    senders: Int[Array, "batch edges"]
    receivers: Int[Array, "batch edges"]
    node_mask: Bool[Array, "batch nodes"]
    edge_features: Float[Array, "batch edges channels"] | None = None

    @property
    def nodes(self) -> int:
        """Nodes in each graph, padding included."""
        return self.node_mask.shape[1]

    def without_loops(self) -> "Graph":
        """The same, with edges from a node to itself made padding."""
        loops = self.senders == self.receivers
        senders, receivers = (jnp.where(loops, self.nodes, ends) for ends in (self.senders, self.receivers))
        return dataclasses.replace(self, senders=senders, receivers=receivers)

    def with_loops(self) -> "Graph":
        """The same, with exactly one edge from every node to itself, at the end. Edge features are left out."""
        bare = self.without_loops()
        every = jnp.broadcast_to(jnp.arange(self.nodes, dtype=bare.senders.dtype)[None, :], self.node_mask.shape)
        senders, receivers = (jnp.concatenate([ends, every], axis=1) for ends in (bare.senders, bare.receivers))
        return Graph(senders, receivers, self.node_mask)

    def from_senders(self, x: Float[Array, "batch nodes ..."]) -> Float[Array, "batch edges ..."]:
        """The value at each edge's sender; 0 for padding."""
        return _looked_up(x, self.senders)

    def from_receivers(self, x: Float[Array, "batch nodes ..."]) -> Float[Array, "batch edges ..."]:
        """The value at each edge's receiver; 0 for padding."""
        return _looked_up(x, self.receivers)

    def summed(self, messages: Float[Array, "batch edges ..."]) -> Float[Array, "batch nodes ..."]:
        """The sum of the messages that arrive at each node, taken in fp32."""
        return _segment_sums(messages, self.receivers, self.nodes)

    def greatest(self, messages: Float[Array, "batch edges ..."]) -> Float[Array, "batch nodes ..."]:
        """The greatest message that arrives at each node, -inf where none does."""
        return jax.vmap(functools.partial(jax.ops.segment_max, num_segments=self.nodes))(messages, self.receivers)

    def degrees(self) -> Float[Array, "batch nodes"]:
        """Edges that arrive at each node, fp32."""
        return self.summed(jnp.ones(self.receivers.shape, jnp.float32))


@dataclasses.dataclass(frozen=True)
class SparseFeatures:
    """Node features as a list of those that are not 0: at `node`, feature number `feature` has `value`.

    Bags of words are hundreds of times as fast so. Padding has node `nodes`.
    """

    node: Int[Array, "batch entries"]
    feature: Int[Array, "batch entries"]
    value: Float[Array, "batch entries"]
    nodes: int


Features = Float[Array, "batch nodes channels"] | SparseFeatures


def product(x: Features, kernel: Float[Array, "channels outputs"]) -> Float[Array, "batch nodes outputs"]:
    """x kernel, in the kernel's dtype."""
    if not isinstance(x, SparseFeatures):
        return flat_product(x.astype(kernel.dtype), kernel)
    rows = kernel.at[x.feature].get(mode="clip")
    return _segment_sums(rows * x.value.astype(kernel.dtype)[..., None], x.node, x.nodes)


def dropped(x: Features, rate: float, key: Array | None) -> Features:
    """Dropout. Of sparse features the zeros need no draw."""
    if isinstance(x, SparseFeatures):
        return dataclasses.replace(x, value=dropout(x.value, rate, key))
    return dropout(x, rate, key)


def unit_length(x: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
    """x / |x| over the last dimension, and 0 for 0; the length is fp32."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, NO_NORM)).astype(x.dtype)


def pooled(x: Float[Array, "batch nodes channels"], graph: Graph, *, mean: bool) -> Float[Array, "batch channels"]:
    """The sum over each graph's nodes, or the mean, in fp32 within; padding nodes add nothing, whatever their values."""
    mask = graph.node_mask[..., None]
    total = jnp.sum(jnp.where(mask, x, 0.0).astype(jnp.float32), axis=1)
    count = jnp.maximum(jnp.sum(mask, axis=1), 1) if mean else 1
    return (total / count).astype(x.dtype)


def _looked_up(x: Array, index: Array) -> Array:
    """x[b, index[b, e]], 0 for an index beyond the nodes."""
    return jax.vmap(lambda values, at: values.at[at].get(mode="fill", fill_value=0))(x, index)


def _segment_sums(values: Array, index: Array, segments: int) -> Array:
    """Sums of the values with each index, of each graph, in fp32; an index beyond the segments adds nothing."""
    sums = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=segments))(values.astype(jnp.float32), index)
    return sums.astype(values.dtype)
