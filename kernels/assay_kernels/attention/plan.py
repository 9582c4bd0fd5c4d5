"""Which blocks of keys each block of queries sees, and in which order the blocks are worked on."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay_kernels.attention.shapes import Options, Sizes

L2_SHARE = 24 << 20  # bytes of keys and values that are read at the same time: half of the L2 cache of an H100 or H200


@dataclasses.dataclass(frozen=True)
class Order:
    """Tiles (pair of batch and head, block of rows) one after the other: sections of pairs, in them all pairs' first block, their second, …

    section: how many pairs are in one, the last one perhaps fewer: whose keys and values fit the L2 cache together. last_first: blocks of
    rows from the last to the first: under a causal mask the longest come first, and the short ones fill up at the end.
    """

    pairs: int
    blocks: int
    section: int
    last_first: bool

    @property
    def tiles(self) -> int:
        """How many there are."""
        return self.pairs * self.blocks

    def tile(self, index: Any) -> tuple[Any, Any]:
        """(pair, block) of the tile with that index."""
        first = index // (self.section * self.blocks) * self.section
        inside = index - first * self.blocks
        together = jnp.minimum(self.section, self.pairs - first) if self.pairs % self.section else self.section
        block = inside // together
        return first + inside - block * together, self.blocks - 1 - block if self.last_first else block


def order_of(pairs: int, group: int, blocks: int, bytes_of_head: int, *, last_first: bool) -> Order:
    """The order for so many pairs, of which each `group` read the same bytes; a section is a multiple of `group`."""
    section = min(pairs, group * max(1, L2_SHARE // max(1, bytes_of_head)))
    return Order(pairs, blocks, section, last_first)


def spans(
    sizes: Sizes,
    block_q: int,
    block_k: int,
    offset: int | jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    options: Options,
    *,
    of_keys: bool = False,
) -> Any:
    """int32 (1 or B, blocks of queries, 4): (first, unmasked first, unmasked end, end) of the blocks of keys that each one sees.

    Blocks in [unmasked first, unmasked end) are seen whole, of the others only what the mask says. One that sees none has a block that
    the mask hides. of_keys: the same for each block of keys, of the blocks of queries. numpy where nothing has to be computed on a device.
    """
    static = isinstance(offset, int) and q_segment_ids is None
    xp: Any = np if static else jnp
    q_first = np.arange(0, sizes.queries, block_q, dtype=np.int32)[None, :, None]
    k_first = np.arange(0, sizes.keys, block_k, dtype=np.int32)[None, None, :]
    q_last, k_last = q_first + block_q - 1, k_first + block_k - 1
    some = np.full((1, q_first.shape[1], k_first.shape[2]), True)
    whole = some & (k_last < sizes.keys)
    if options.causal:
        some, whole = some & (k_first <= q_last + offset), whole & (k_last <= q_first + offset)
    if options.window is not None:
        some = some & (k_last > q_first + offset - options.window)
        whole = whole & (k_first > q_last + offset - options.window)
    if q_segment_ids is not None and kv_segment_ids is not None:
        q_least, q_most = _extremes(q_segment_ids, block_q)
        k_least, k_most = _extremes(kv_segment_ids, block_k)
        q_least, q_most, k_least, k_most = q_least[:, :, None], q_most[:, :, None], k_least[:, None], k_most[:, None]
        some = some & (q_least <= k_most) & (k_least <= q_most)
        whole = whole & (q_least == q_most) & (k_least == k_most) & (q_least == k_least)
    if of_keys:
        some, whole = xp.swapaxes(some, 1, 2), xp.swapaxes(whole, 1, 2)
    return _runs(xp, some, whole)


def _runs(xp: Any, some: Any, whole: Any) -> Any:
    count = some.shape[-1]
    index = np.arange(count, dtype=np.int32)[None, None, :]
    end = xp.maximum(xp.max(xp.where(some, index + 1, 0), axis=-1), 1)
    first = xp.minimum(xp.min(xp.where(some, index, count), axis=-1), end - 1)
    whole_first = xp.minimum(xp.min(xp.where(whole, index, count), axis=-1), end)
    broken = ~whole & (index >= whole_first[..., None])
    whole_end = xp.minimum(xp.min(xp.where(broken, index, count), axis=-1), end)
    return xp.stack([first, whole_first, whole_end, end], axis=-1).astype(np.int32)


def _extremes(ids: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The least and the largest number in each block of each row."""
    padded = jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % block)), mode="edge")
    blocks = padded.reshape(ids.shape[0], math.ceil(ids.shape[1] / block), block)
    return jnp.min(blocks, axis=-1), jnp.max(blocks, axis=-1)
