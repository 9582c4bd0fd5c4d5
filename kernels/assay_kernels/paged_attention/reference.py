"""The specification of paged_attention in plain jax.numpy: every row's pages are gathered, and masked attention runs over all of them."""

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels.paged_attention.shapes import Options, PagedAttention

LOWEST = -1e30  # below every logit, and finite: a difference of it is 0, not NaN


def reference(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    q_lengths: jax.Array | None,
    options: Options,
) -> PagedAttention:
    """As paged_attention, in at least fp32; B T N D and K G as in shapes.py, S: all slots of a row's pages."""
    rows, tokens, heads, head_dim = q.shape
    kv_heads, wide = k_pages.shape[1], jnp.promote_types(q.dtype, jnp.float32)
    first, last = seen(tokens, lengths, q_lengths, options)  # (B, T)
    slot = lax.broadcasted_iota(jnp.int32, (rows, page_table.shape[1] * k_pages.shape[2]), 1)
    mask = (slot[:, None] >= first[..., None]) & (slot[:, None] < last[..., None])  # (B, T, S)
    used = jnp.any(mask, axis=1)[:, None, :, None]
    k, v = (jnp.where(used, _gathered(pages, page_table).astype(wide), 0.0) for pages in (k_pages, v_pages))
    grouped = q.reshape(rows, tokens, kv_heads, heads // kv_heads, head_dim).astype(wide)
    logits = jnp.einsum("btkgd,bksd->bkgts", grouped, k, precision="highest") * options.scale
    if options.softcap is not None:
        logits = options.softcap * jnp.tanh(logits / options.softcap)
    logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    top = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf), LOWEST)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bkgts,bksd->bkgtd", weights, v, precision="highest") / jnp.where(total == 0.0, 1.0, total)
    lse = jnp.where(total == 0.0, -jnp.inf, top + jnp.log(jnp.where(total == 0.0, 1.0, total)))[..., 0]
    return PagedAttention(
        jnp.moveaxis(out, 3, 1).reshape(rows, tokens, heads, head_dim).astype(q.dtype),
        jnp.moveaxis(lse, 3, 1).reshape(rows, tokens, heads),
    )


def seen(tokens: int, lengths: jax.Array, q_lengths: jax.Array | None, options: Options) -> tuple[jax.Array, jax.Array]:
    """(the first slot that each query sees, the one after the last), each (B, T); empty for a query that stands for no token."""
    t = lax.broadcasted_iota(jnp.int32, (lengths.shape[0], tokens), 1)
    new = jnp.full_like(lengths, tokens) if q_lengths is None else q_lengths
    end = lengths[:, None] - new[:, None] + t + 1
    end = jnp.where(t < new[:, None], jnp.maximum(end, 0), 0)
    return jnp.zeros_like(end) if options.window is None else jnp.maximum(end - options.window, 0), end


def _gathered(pages: jax.Array, page_table: jax.Array) -> jax.Array:
    """(B, K, S, D): the slots of each row, in order."""
    found = jnp.swapaxes(pages[page_table], 1, 2)
    return found.reshape(*found.shape[:2], -1, found.shape[-1])
