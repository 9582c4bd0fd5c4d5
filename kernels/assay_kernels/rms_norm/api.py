"""RMSNorm: the public function, and the choice of how it is computed."""

from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.op import Op
from assay_kernels.rms_norm.reference import Options, reference
from assay_kernels.target import Target

OP = Op("rms_norm", reference)


def rms_norm(
    x: jax.Array, w: jax.Array, *, residual: jax.Array | None = None, eps: float = 1e-6, impl: str = "auto"
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """w x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4); x's shape.

    x: (*items, width), bf16, fp16, fp32 or fp64. w: (width,), of a floating point dtype; the result has the wider one of both. Means are
    in fp32 (fp64 for fp64 inputs), and what is normalised is rounded to x's dtype before it is multiplied with w.
    residual: x's shape and dtype. With it what is normalised is x + residual, and the result is (normalised, x + residual).
    eps: at least 0. impl: "mosaic", "reference", or "auto"; see assay_kernels.op.

    Raises TypeError and ValueError for other arguments, ImplementationError for an implementation that cannot do it.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating) or not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype} and w {w.dtype}: both must have floating point dtypes")
    if w.ndim != 1 or x.shape[-1:] != w.shape or not w.size:
        raise ValueError(f"x {x.shape} and w {w.shape}: must be (*items, width) and (width,), width at least 1")
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"residual is {residual.dtype}{list(residual.shape)} and x {x.dtype}{list(x.shape)}: must be equal"
        )
    if not eps >= 0.0:
        raise ValueError(f"eps = {eps}: must be at least 0")
    found: tuple[jax.Array, ...] = OP(x, w, residual, Options(eps), impl=impl)
    return found[0] if residual is None else (found[0], found[1])


def _supports(target: Target, *arguments: Any) -> str | None:
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    from assay_kernels.rms_norm.mosaic import supports

    return supports(target, *arguments)


@OP.register("mosaic", supports=_supports, priority=10)
def _mosaic(*arguments: Any) -> Any:
    from assay_kernels.rms_norm.mosaic import mosaic

    return mosaic(*arguments)
