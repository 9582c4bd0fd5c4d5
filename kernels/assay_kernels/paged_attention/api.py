"""Attention over a paged cache of keys and values."""

from typing import Any, Literal, overload

import jax

from assay_kernels.op import Op
from assay_kernels.paged_attention.reference import reference
from assay_kernels.paged_attention.shapes import Options, PagedAttention, check
from assay_kernels.target import Target

OP = Op("paged_attention", reference)


@overload
def paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    q_lengths: jax.Array | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: Literal[False] = False,
    impl: str = "auto",
) -> jax.Array: ...


@overload
def paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    q_lengths: jax.Array | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: Literal[True],
    impl: str = "auto",
) -> PagedAttention: ...


def paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    q_lengths: jax.Array | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> jax.Array | PagedAttention:
    """softmax(scale q k^T) v of the newest tokens over everything in the cache: decoding (T = 1) or prefill behind a prefix (T > 1).

    A paged cache is that of Kwon et al. 2023 (arXiv:2309.06180, section 4). The new tokens' keys and values must be in it already.

    q: (B, T, N, D), bf16, fp16, fp32 or fp64. k_pages, v_pages: (pages, K, page_size, D), the same dtype, with K a divisor of N: query
        head n reads head n // (N / K) (Ainslie et al. 2023, arXiv:2305.13245). A head's slots of a page lie together, so that one TMA copy
        reads a contiguous piece of memory.
    page_table: (B, pages of a row), int32: slot s of row b is slot s % page_size of page page_table[b, s // page_size].
    lengths: (B,), int32: tokens in the cache, the new ones included; at most the table's slots. Entries of the table, pages and slots that
        no query sees may hold anything (entries: any page there is). A row of length 0 gives 0.
    q_lengths: (B,), int32, how many of the T queries stand for new tokens, at most T; None for all. They come first: query t of row b
        stands at position lengths[b] - q_lengths[b] + t and sees what is not after it. The others, and those before position 0, give 0.
    scale: of the logits; D ** -0.5 without. window: only so many of the newest positions are seen, the query's own included.
    softcap: logits are softcap tanh(scale q k^T / softcap) (Gemma 2, arXiv:2408.00118, section 2).
    return_lse: also the log of the sum of exp(logits), as PagedAttention; with it results over parts of a sequence can be combined.
    impl: "mosaic" (a Hopper GPU) or "reference"; see assay_kernels.op.

    Returns (B, T, N, D) in q's dtype, or PagedAttention. It has no derivative: asking for one raises NotImplementedError. Raises TypeError
    and ValueError for other inputs, ImplementationError for an implementation that cannot do it.
    """
    options = Options(q.shape[-1] ** -0.5 if scale is None else scale, window, softcap)
    check(q, k_pages, v_pages, page_table, lengths, q_lengths, options)
    found: PagedAttention = OP(*_constant(q, k_pages, v_pages), page_table, lengths, q_lengths, options, impl=impl)
    return found if return_lse else found.out


@jax.custom_jvp
def _constant(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return arrays


@_constant.defjvp
def _refused(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "paged_attention has no derivative: it reads a cache, which is for inference. Train with attention over whole "
        "sequences, or put jax.lax.stop_gradient around the arguments"
    )


def _mosaic(*arguments: Any) -> PagedAttention:
    from assay_kernels.paged_attention import mosaic

    return mosaic.attend(*arguments)


def _supports(target: Target, *arguments: Any) -> str | None:
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    from assay_kernels.paged_attention import mosaic

    return mosaic.refusal(*arguments)


OP.register("mosaic", supports=_supports, priority=20)(_mosaic)
