"""attention by cuDNN's fused kernels, as jax.nn calls them: what they can do, without their known faults."""

import jax
import jax.numpy as jnp

from assay_kernels import compat
from assay_kernels.attention.shapes import Attention, Options, is_zero
from assay_kernels.target import Target

WIDEST = 256  # head_dim on a Hopper GPU


def supports(
    target: Target,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    bias: jax.Array | None,
    offset: int | jax.Array,
    dropout_key: jax.Array | None,
    options: Options,
) -> str | None:
    """Why cuDNN cannot do such a call, or not without a known fault; None where it can."""
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    if not compat.has_cudnn():
        return "jax finds no cuDNN in this process"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 or float16, not {q.dtype}"
    if q.shape[3] > WIDEST or q.shape[3] % 8:
        return f"takes a head_dim of at most {WIDEST} and a multiple of 8, not {q.shape[3]}"
    unsupported = {
        "nothing to compute": 0 in (*q.shape, *k.shape),
        "a soft-cap": options.softcap is not None,
        "segments, which it would get as a bias as large as the scores": q_segment_ids is not None,
        "a bias, whose gradient jax has wrong for more than one batch": bias is not None,
        "dropout with a key of jax": dropout_key is not None,
        "lse, which jax rounds to the inputs' dtype": options.lse,
        "a window without causal, where it sees keys to come": options.window is not None and not options.causal,
        "an offset of a causal mask": options.causal and not is_zero(offset),
        "more queries than keys under a causal mask": options.causal and q.shape[1] > k.shape[1],
        "a window over other queries than keys": options.window is not None and q.shape[1] != k.shape[1],
    }
    return next((f"is not used for {what}" for what, present in unsupported.items() if present), None)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segment_ids: None,
    kv_segment_ids: None,
    bias: None,
    offset: int | jax.Array,
    dropout_key: None,
    options: Options,
) -> Attention:
    """As `reference`, for what `supports` lets through."""
    window = None if options.window is None else (options.window - 1, 0)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=options.scale,
        is_causal=options.causal,
        local_window_size=window,
        implementation="cudnn",
    )
    return Attention(out, None)
