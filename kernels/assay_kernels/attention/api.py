"""Multi-head attention: the public function, and the choice of how it is computed."""

from typing import Any

import jax

from assay_kernels.attention import cudnn
from assay_kernels.attention.reference import reference
from assay_kernels.attention.shapes import Attention, Options, check
from assay_kernels.op import Op
from assay_kernels.target import Target

OP = Op("attention", reference)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    offset: int | jax.Array = 0,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T) v (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), the shape and dtype of q; with return_lse (that, lse).

    q: (B, T, N, D): batch, queries, heads, head_dim. k, v: (B, S, K, D), of the same dtype: bf16, fp16, fp32 or fp64. N is a multiple of
    K; consecutive query heads share a key head (Ainslie et al. 2023, arXiv:2305.13245). The softmax is in fp32 (fp64 for fp64 inputs).

    causal: query i attends to keys up to i + offset. offset: the position of query 0 among the keys, in tokens; may be traced.
    window: in tokens, with causal: a query sees its own position and the window - 1 before it.
    q_segment_ids, kv_segment_ids: integers (B, T) and (B, S); only equal ones attend. kv_segment_ids: those of the queries without.
    bias: added to the scores, four dimensions that broadcast to (B, N, T, S); -inf hides a key.
    scale: None for 1 / sqrt(D). softcap: scores are softcap tanh(scale q k^T / softcap) (Gemma 2, arXiv:2408.00118, section 2),
        before the bias.
    dropout_rate, dropout_key: weights are 0 with that probability, else divided by (1 - rate); none without a key.
    return_lse: also log(sum(exp(scores))) of each query, (B, T, N) in fp32, differentiable like the output.
    impl: an implementation by its name, or "auto"; see assay_kernels.op.

    A query that sees no key gives 0, and -inf in lse. What k and v hold where no query looks must be finite.

    Raises TypeError and ValueError for other arguments, ImplementationError for an implementation that cannot do it.
    """
    if q_segment_ids is not None and kv_segment_ids is None:
        kv_segment_ids = q_segment_ids
    options = Options(causal, window, scale, softcap, dropout_rate if dropout_key is not None else 0.0, return_lse)
    check(q, k, v, q_segment_ids, kv_segment_ids, bias, offset, options)
    key = dropout_key if options.dropout_rate else None
    out, lse = OP(q, k, v, q_segment_ids, kv_segment_ids, bias, offset, key, options, impl=impl)
    return (out, lse) if return_lse else out


def _mosaic_supports(target: Target, *arguments: Any) -> str | None:
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    from assay_kernels.attention import mosaic

    q, k, _, _, _, bias, _, dropout_key, _ = arguments
    return mosaic.supports(q, k, bias, dropout_key)


@OP.register("mosaic", supports=_mosaic_supports, priority=10)
def _mosaic(*arguments: Any) -> Attention:
    from assay_kernels.attention import mosaic

    return mosaic.attention(*arguments)


OP.register("cudnn", supports=cudnn.supports, priority=20)(cudnn.attention)
