"""The gated linear recurrence: the public function, and the choice of how it is computed."""

from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.linear_scan.reference import Options, reference, wide
from assay_kernels.op import Op
from assay_kernels.target import Target

OP = Op("linear_scan", reference)


def linear_scan(
    x: jax.Array,
    log_decay: jax.Array,
    b: jax.Array,
    c: jax.Array,
    *,
    chunk: int = 64,
    runs: jax.Array | None = None,
    state: jax.Array | None = None,
    impl: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """The recurrence of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060, section 3). For each head, with a state h of (head_dim, state):

        h_t = exp(log_decay_t) h_{t-1} + x_t b_t^T,    y_t = h_t c_t

    Returns (y, h after the last position): y has x's shape and dtype, h is (batch, heads, head_dim, state), fp32.

    x: (batch, seq, heads, head_dim), bf16, fp16, fp32 or fp64. log_decay: (batch, seq, heads), fp32, at most 0. b, c: (batch, seq, groups,
    state), x's dtype; heads are a multiple of groups, and consecutive heads share b and c. Sums are in fp32 (fp64 for fp64 inputs).
    runs: integers (batch, seq), as `runs_of` gives them: h is 0 before the first position of each run but the first.
    state: h before the first position, fp32; 0 without it.
    chunk: in positions; how many are computed at once. It changes values by rounding only.
    impl: "mosaic" (on Hopper: values by one kernel, gradients by the reference), "reference", or "auto"; see assay_kernels.op.

    Raises TypeError and ValueError for other arguments, ImplementationError for an implementation that cannot do it.
    """
    _check(x, log_decay, b, c, runs, state, chunk)
    found: tuple[jax.Array, jax.Array] = OP(x, log_decay, b, c, runs, state, Options(chunk), impl=impl)
    return found


def _check(
    x: jax.Array,
    log_decay: jax.Array,
    b: jax.Array,
    c: jax.Array,
    runs: jax.Array | None,
    state: jax.Array | None,
    chunk: int,
) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating) or (b.dtype, c.dtype) != (x.dtype, x.dtype):
        raise TypeError(f"x is {x.dtype}, b {b.dtype} and c {c.dtype}: must have one floating point dtype")
    if x.ndim != 4 or not x.shape[1]:
        raise ValueError(f"x {x.shape}: must be (batch, seq, heads, head_dim), with a position at least")
    batch, seq, heads, head_dim = x.shape
    if log_decay.shape != x.shape[:3] or log_decay.dtype != wide(x):
        raise ValueError(f"log_decay is {log_decay.dtype}{list(log_decay.shape)}: must be {wide(x)}{list(x.shape[:3])}")
    if b.ndim != 4 or b.shape != c.shape or b.shape[:2] != (batch, seq) or heads % b.shape[2]:
        raise ValueError(f"b {b.shape} and c {c.shape}: must be ({batch}, {seq}, a divisor of {heads}, state), both")
    if runs is not None and (runs.shape != (batch, seq) or not jnp.issubdtype(runs.dtype, jnp.integer)):
        raise ValueError(f"runs are {runs.dtype}{list(runs.shape)}: must be integers {[batch, seq]}")
    if state is not None and state.shape != (batch, heads, head_dim, b.shape[3]):
        raise ValueError(f"state {state.shape}: must be {(batch, heads, head_dim, b.shape[3])}")
    if chunk < 1:
        raise ValueError(f"chunk = {chunk}: must be at least 1")


def _supports(target: Target, *arguments: Any) -> str | None:
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    from assay_kernels.linear_scan.mosaic import supports

    return supports(target, *arguments)


@OP.register("mosaic", supports=_supports, priority=20, derivative="reference")
def _mosaic(*arguments: Any) -> Any:
    from assay_kernels.linear_scan.mosaic import mosaic

    return mosaic(*arguments)
