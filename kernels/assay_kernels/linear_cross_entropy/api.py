"""Cross entropy of a linear head without its logits in memory."""

import math

import jax
import jax.numpy as jnp

from assay_kernels.linear_cross_entropy.blocked import blocked
from assay_kernels.linear_cross_entropy.reference import reference
from assay_kernels.linear_cross_entropy.shapes import CrossEntropy, Options, check
from assay_kernels.linear_cross_entropy.vjp import chunked
from assay_kernels.op import Op
from assay_kernels.target import Target

OP = Op("linear_cross_entropy", reference)


def linear_cross_entropy(
    x: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    classes: int | None = None,
    ignore_index: int | None = None,
    axis_name: str | None = None,
    shards: int = 1,
    impl: str = "auto",
) -> CrossEntropy:
    """Cross entropy of softmax(x w) against labels, unreduced: (loss, nll, lse), each of shape (*items,), fp32.

    x: (*items, width), bf16, fp16, fp32 or fp64. w: (width, columns), the same dtype. labels: integers (*items,); negative ones are
    ignored (0, no gradient, whatever x holds there), and so is `ignore_index`; others that are no class give NaN. Products are
    accumulated in at least fp32. All three outputs can be differentiated, with respect to x and w.

    loss: (1 - s) nll + s (lse - mean of the logits) + z lse^2, s = label_smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7),
        z = z_loss (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    weights: (*items,), the factors with which the caller will add the losses up. They change no value; where they hold, gradients are
        computed in the forward pass, a quarter of the products less, and where they do not, the gradients are right as well.
    softcap: logits are softcap tanh(x w / softcap). classes: columns from there on only pad w; None for all columns.
    axis_name: under shard_map, the mesh axis over which w's columns are divided; labels and classes count over all of them.
    shards: under jit, over how many devices the items' first axis is divided. It changes no value: each device then adds up its own part
        of w's gradient, and the devices' parts are added once, not in every chunk.
    impl: "chunked" (what auto takes), "blocked" (least memory) or "reference"; see assay_kernels.op.

    Raises TypeError and ValueError for other inputs, ImplementationError for an implementation that cannot do it.
    """
    columns = w.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    options = Options(classes or columns, z_loss, label_smoothing, softcap, ignore_index, axis_name, shards)
    check(x, w, labels, weights, options)
    items = labels.shape
    flat = None if weights is None else weights.reshape(-1)
    rows = x.reshape(math.prod(items), x.shape[-1]), w, labels.reshape(-1).astype(jnp.int32), flat
    found: CrossEntropy = OP(*rows, options, impl=impl)
    return CrossEntropy(*(value.reshape(items) for value in found))


def _supports(
    target: Target, x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array | None, options: Options
) -> str | None:
    return None if x.size else f"x {x.shape} has no elements to divide into chunks"


OP.register("chunked", supports=_supports, priority=10)(chunked)
OP.register("blocked", supports=_supports, priority=5)(blocked)
