"""Products of rows that are sorted by group with their group's matrix."""

from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.grouped_matmul.blocked import blocked
from assay_kernels.grouped_matmul.configs import refused
from assay_kernels.grouped_matmul.reference import counted, reference
from assay_kernels.grouped_matmul.shapes import Options, check
from assay_kernels.op import Op
from assay_kernels.target import Target

OP = Op("grouped_matmul", reference, counted)


def grouped_matmul(
    x: jax.Array,
    w: jax.Array,
    group_sizes: jax.Array,
    *,
    transpose_w: bool = False,
    out_dtype: Any = None,
    impl: str = "auto",
) -> jax.Array:
    """Row i of group g gives x_i w_g: (M, N). The products of a mixture of experts (Gale et al. 2022, arXiv:2211.15841, section 4).

    x: (M, K), the rows of group 0 first, then those of group 1, and so on; bf16, fp16, fp32 or fp64. w: (groups, K, N), or with
    `transpose_w` (groups, N, K), the same dtype. group_sizes: integers (groups,), how many rows each group has; 0 is allowed, and their
    sum is at most M (what a group has beyond the M rows is left out). Rows after the last group's give 0, whatever x holds there.

    Products are accumulated in at least fp32. It can be differentiated with respect to x (a grouped product with w transposed; 0 after
    the last group's rows) and w (of each group the sum of x_i^T dy_i; exactly 0 for an empty group).

    out_dtype: of the result; x's without. impl: "mosaic" (Hopper), "blocked" (any device) or "reference"; see assay_kernels.op.

    Raises TypeError and ValueError for other inputs, ImplementationError for an implementation that cannot do it.
    """
    options = Options(transpose_w, None if out_dtype is None else jnp.dtype(out_dtype))
    check(x, w, group_sizes, options)
    product: jax.Array = OP(x, w, group_sizes, options, impl=impl)
    return product


def _supports_blocked(
    target: Target, x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options
) -> str | None:
    return None if x.size and w.size else f"x {x.shape} or w {w.shape} has no elements"


def _mosaic(x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options) -> jax.Array:
    from assay_kernels.grouped_matmul.mosaic import grouped

    return grouped(x, w, group_sizes, options)


OP.register("mosaic", supports=refused, priority=20)(_mosaic)
OP.register("blocked", supports=_supports_blocked, priority=10)(blocked)
