"""What goes in and out of linear_cross_entropy, the checks of it, and into how many chunks its tokens are divided."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from assay_kernels.target import Target

# Of a chunk of tokens: bytes of its fp32 logits, and the least number of rows, whatever their size. Each chunk reads and writes the whole
# gradient of w, which must be little beside its products.
CHUNK = {"cpu": (8 << 20, 256)}
ACCELERATOR_CHUNK = (256 << 20, 1024)


class CrossEntropy(NamedTuple):
    """All fp32 (fp64 for fp64 inputs), one number for each item, in nats; 0 where a label is ignored, NaN where it is no class.

    loss: with smoothing and z-loss. nll: negative log likelihood of the label, without them. lse: log of the sum of exp(logits).
    """

    loss: jax.Array
    nll: jax.Array
    lse: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of linear_cross_entropy, with the number of classes known."""

    classes: int
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    softcap: float | None = None
    ignore_index: int | None = None
    axis_name: str | None = None
    shards: int = 1


def check(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array | None, options: Options) -> None:
    """Raise TypeError or ValueError, in words, for inputs that are not as the op's documentation says."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or w.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype} and w {w.dtype}: both must have one floating point dtype")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels are {labels.dtype}: must be integers")
    if w.ndim != 2 or x.shape[-1:] != w.shape[:1]:
        raise ValueError(f"x {x.shape} and w {w.shape}: must be (*items, width) and (width, classes)")
    if labels.shape != x.shape[:-1]:
        raise ValueError(f"labels {labels.shape} for x {x.shape}: must be one for each item, {x.shape[:-1]}")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights {weights.shape}: must be one for each item, {labels.shape}")
    if weights is not None and options.axis_name is not None:
        raise ValueError("weights with axis_name: a divided vocabulary has no gradients in the forward pass")
    _check_options(options, w.shape[1])


def chunk_count(tokens: int, columns: int, target: Target, shards: int = 1) -> int:
    """Into how many chunks of equal size `tokens` rows are divided, so that one chunk's fp32 logits on a device are of a fixed size.

    A number that divides the tokens is taken where one is near: then nothing is filled up, and tokens that are divided over devices
    stay where they are.
    """
    size, fewest = CHUNK.get(target.platform, ACCELERATOR_CHUNK)
    return _near_divisor(tokens, max(size // (4 * columns), fewest) * shards, shards)


def forward_chunk_count(tokens: int, columns: int, target: Target) -> int:
    """The same for a pass that adds nothing up: as many rows as the size allows, at least 16."""
    size, _ = CHUNK.get(target.platform, ACCELERATOR_CHUNK)
    return _near_divisor(tokens, max(size // (4 * columns), 16), 1)


def block_width(tokens: int, columns: int, target: Target) -> int:
    """How many columns of w the backward pass takes at once: half of that size in fp32 logits of all tokens, as a multiple of 128."""
    size, fewest = CHUNK.get(target.platform, ACCELERATOR_CHUNK)
    most = max(size // (8 * tokens), fewest)
    return min(columns, most if most < 128 else most // 128 * 128)


def temp_bound(tokens: int, width: int, columns: int, itemsize: int, target: Target, *, announced: bool) -> int:
    """Bytes of temporary memory that loss and gradients by chunks take at most, beside arguments and gradients.

    The gradient of w in fp32, twice where a product cannot be added in place; logits of a chunk and their cotangents in fp32; in fp32 each
    token's row; and with weights the gradients that wait for the backward pass.
    """
    chunk = -(-tokens // chunk_count(tokens, columns, target))
    sums = 4 * width * columns * (2 if target.platform == "cpu" else 1)
    waiting = itemsize * width * (columns + tokens) if announced else 0
    return sums + 8 * chunk * columns + 8 * tokens * width + waiting + (1 << 20)


def blocked_temp_bound(tokens: int, width: int, columns: int, itemsize: int, target: Target) -> int:
    """The same for the least memory: logits of a chunk or a block in fp32 and the inputs' dtype, and in fp32 the rows' gradients twice."""
    chunk = 4 * columns * -(-tokens // forward_chunk_count(tokens, columns, target))
    block = (4 + itemsize) * (tokens + width) * block_width(tokens, columns, target)
    return max(chunk, block + 8 * tokens * width) + (4 + itemsize) * tokens * width + (1 << 20)


def _near_divisor(tokens: int, rows: int, shards: int) -> int:
    """How many chunks of about `rows` there are: a number that divides the tokens of each shard where there is one near."""
    least = -(-tokens // rows)
    return next((n for n in range(least, 2 * least) if tokens % (n * shards) == 0), least)


def _check_options(o: Options, columns: int) -> None:
    if o.classes < 1 or (o.axis_name is None and o.classes > columns):
        raise ValueError(f"classes = {o.classes}: w has {columns} columns")
    if not 0.0 <= o.label_smoothing < 1.0:
        raise ValueError(f"label_smoothing = {o.label_smoothing}: must be at least 0 and less than 1")
    if not o.z_loss >= 0.0:
        raise ValueError(f"z_loss = {o.z_loss}: must be at least 0")
    if o.shards < 1:
        raise ValueError(f"shards = {o.shards}: must be at least 1")
    if o.softcap is not None and not o.softcap > 0.0:
        raise ValueError(f"softcap = {o.softcap}: must be greater than 0")
