"""The order of the work of grouped_matmul's persistent kernels: small tables that XLA computes, and a tile's place in the order."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels.grouped_matmul.configs import ROWS

ALIGNMENT = 8  # a copy of swizzled rows starts at a multiple of 8


def row_tiles(starts: jax.Array, ends: jax.Array, rows: int) -> jax.Array:
    """(tiles + 1, 4), int32: of each tile of 128 rows (group, first row, first of the group's rows in it, row after the last of them).

    A tile is of one group, and a row of one tile: the group's first tile starts at the multiple of 8 before its first row, not at one of
    128, so that a group has no more tiles than its size asks for, or one. Group number `groups` are the rows after the last group's.
    The last line holds the number of tiles, and of those that are of a group; the table is as long as the sizes can make it.

    rows: a multiple of 8, and at least 128. The last tile is moved back so that it ends there.
    """
    groups = starts.shape[0]
    starts = jnp.append(starts, ends[-1])
    ends = jnp.append(ends, rows)
    base = starts // ALIGNMENT * ALIGNMENT
    counts = jnp.where(ends > starts, -(-(ends - base) // ROWS), 0)
    last = jnp.cumsum(counts, dtype=jnp.int32)
    most = rows // ROWS + 2 * (groups + 1)
    tile = jnp.arange(most, dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(last, tile, side="right", method="compare_all").astype(jnp.int32), groups)
    nominal = base[group] + ROWS * (tile - (last - counts)[group])
    first = jnp.clip(nominal, 0, rows - ROWS)
    table = [group, first, jnp.maximum(starts[group], nominal), jnp.minimum(ends[group], nominal + ROWS)]
    counted = jnp.stack([last[-1], last[-2], last[-1], last[-1]])
    return jnp.concatenate([jnp.stack(table, axis=1), counted[None]])


def by_size(starts: jax.Array, ends: jax.Array) -> jax.Array:
    """(groups, 3), int32: (group, first row, row after the last), the largest group first, so that the last tiles are short ones."""
    order = jnp.argsort(starts - ends, stable=True).astype(jnp.int32)
    return jnp.stack([order, starts[order], ends[order]], axis=1)


def place(index: Any, down: Any, across: int, together: int) -> tuple[jax.Array, jax.Array]:
    """(row, column) of the tile with that index, of down x across tiles: `together` rows are gone down before the next column is."""
    band = index // (together * across)
    inside = index - band * (together * across)
    height = jnp.minimum(together, down - band * together)
    return band * together + lax.rem(inside, height), inside // height
