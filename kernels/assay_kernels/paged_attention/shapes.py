"""What paged_attention is given and gives, and what is refused before any work.

Shapes: B rows (sequences), T new tokens of each, N query heads, K heads of keys and values, G = N / K, D head dimension.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class PagedAttention(NamedTuple):
    """out: (B, T, N, D), the queries' dtype. lse: (B, T, N), at least fp32, log of the sum of exp(logits); -inf where nothing is seen."""

    out: jax.Array
    lse: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of paged_attention, with the scale known."""

    scale: float
    window: int | None = None
    softcap: float | None = None


def check(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    q_lengths: jax.Array | None,
    options: Options,
) -> None:
    """Raise TypeError or ValueError, in words, for inputs that are not as the op's documentation says."""
    if not jnp.issubdtype(q.dtype, jnp.floating) or not q.dtype == k_pages.dtype == v_pages.dtype:
        raise TypeError(
            f"q is {q.dtype}, k_pages {k_pages.dtype}, v_pages {v_pages.dtype}: all must have one floating point dtype"
        )
    if q.ndim != 4 or k_pages.ndim != 4 or k_pages.shape != v_pages.shape:
        raise ValueError(
            f"q {q.shape}, k_pages {k_pages.shape} and v_pages {v_pages.shape}: must be (rows, tokens, heads, head_dim) "
            "and twice (pages, kv_heads, page_size, head_dim)"
        )
    if q.shape[3] != k_pages.shape[3]:
        raise ValueError(f"q {q.shape} and k_pages {k_pages.shape}: the head dimensions differ")
    if q.shape[2] % k_pages.shape[1] or not q.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads must be a positive multiple of {k_pages.shape[1]} heads of keys")
    if page_table.dtype != jnp.int32 or page_table.ndim != 2 or page_table.shape[0] != q.shape[0]:
        raise ValueError(
            f"page_table is {page_table.dtype} {page_table.shape}: must be int32 ({q.shape[0]}, pages of a row)"
        )
    for name, value in (("lengths", lengths), ("q_lengths", q_lengths)):
        if value is not None and (value.dtype != jnp.int32 or value.shape != q.shape[:1]):
            raise ValueError(f"{name} is {value.dtype} {value.shape}: must be int32, one for each row, {q.shape[:1]}")
    if options.window is not None and options.window < 1:
        raise ValueError(f"window = {options.window}: must be at least 1")
    if not options.scale > 0.0:
        raise ValueError(f"scale = {options.scale}: must be greater than 0")
    if options.softcap is not None and not options.softcap > 0.0:
        raise ValueError(f"softcap = {options.softcap}: must be greater than 0")
