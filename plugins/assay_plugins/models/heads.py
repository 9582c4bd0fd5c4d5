"""What a network offers whose output is a linear map of hidden states, so that an objective can do without the logits of all items."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.outcome import Batch
from assay.parallel.constrain import constrain
from assay_plugins.models.layers import Embedding, Linear, flat_product

MASKED = -1e30  # the logit of no class; finite, and exp gives exactly 0 in fp32


@runtime_checkable
class LinearHead(Protocol):
    """A network for which `module(batch, ...)` is `hidden(batch, ...) @ kernel`, with logits of -1e30 from column `classes` on."""

    def hidden(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "*items width"]:
        """What the head reads. Takes what the module's call takes, and changes what it changes."""

    def head_kernel(self) -> tuple[Float[Array, "width columns"], int]:
        """(kernel, classes); columns beyond the classes only pad the kernel."""


def kernel_of(head: Linear | None, tokens: Embedding) -> Float[Array, "width columns"]:
    """The kernel of `head`, or that of a head tied to the embedding where there is none."""
    return tokens.embedding[...].T if head is None else head.kernel[...]


def logits_of(
    x: Float[Array, "batch seq width"], kernel: Float[Array, "width columns"], classes: int
) -> Float[Array, "batch seq columns"]:
    """The scores of a head, over the padded vocabulary."""
    logits = constrain(flat_product(x, kernel), "batch", "sequence", "act_vocab")
    if logits.shape[-1] == classes:
        return logits
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) < classes, logits, MASKED)
