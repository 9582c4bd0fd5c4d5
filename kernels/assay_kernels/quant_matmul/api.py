"""Products of activations with quantised weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.op import Op
from assay_kernels.quant_matmul.formats import QuantizedWeights
from assay_kernels.quant_matmul.reference import reference, xla
from assay_kernels.quant_matmul.shapes import Options, check
from assay_kernels.target import Target

OP = Op("quant_matmul", reference)


def quant_matmul(x: jax.Array, weights: QuantizedWeights, *, out_dtype: Any = None, impl: str = "auto") -> jax.Array:
    """x times quantised weights, accumulated in at least fp32: (*items, K) by (K, N) is (*items, N).

    Groups of weights with a scale each are those of Frantar et al. 2022 (arXiv:2210.17323, section 4); for few rows of x they are read in
    packed form, as Frantar et al. 2024 do (arXiv:2408.11743, section 3.4).

    x: (*items, K), bf16, fp16, fp32 or fp64. weights: what `quantize` gives. out_dtype: of the result; x's without.
    impl: "mosaic" (groups, few rows, bf16, a Hopper GPU), "xla" (what auto takes else) or "reference"; see assay_kernels.op.

    It can be differentiated with respect to x. The weights are constants: their gradient is none, or 0. Raises TypeError and ValueError for
    other inputs, ImplementationError for an implementation that cannot do it.
    """
    form = weights.format
    values, scales = (jax.lax.stop_gradient(v) for v in (weights.values, weights.scales))
    check(x, values, scales, form)
    options = Options(form, None if out_dtype is None else jnp.dtype(out_dtype).name)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    found: jax.Array = OP(rows, values, scales, options, impl=impl)
    return found.reshape(*x.shape[:-1], form.shape[1])


def _xla_supports(target: Target, x: jax.Array, values: jax.Array, scales: jax.Array, options: Options) -> str | None:
    form, out = options.format, jnp.dtype(options.out_dtype or x.dtype)
    if form.group is not None and out.itemsize > x.dtype.itemsize:
        return f"rounds the weights of {form} to {x.dtype}, the result is asked for in {out}"
    return None


def _mosaic(*arguments: Any) -> jax.Array:
    from assay_kernels.quant_matmul import mosaic

    return mosaic.multiply(*arguments)


def _mosaic_supports(target: Target, *arguments: Any) -> str | None:
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    from assay_kernels.quant_matmul import mosaic

    return mosaic.refusal(*arguments)


OP.register("xla", supports=_xla_supports, priority=10)(xla)
OP.register("mosaic", supports=_mosaic_supports, priority=20)(_mosaic)
