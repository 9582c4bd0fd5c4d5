"""The specification of quant_matmul in plain jax.numpy: the weights as they stand for, and one product."""

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels.quant_matmul.formats import QuantizedWeights, dequantize
from assay_kernels.quant_matmul.shapes import Options


def reference(x: jax.Array, values: jax.Array, scales: jax.Array, options: Options) -> jax.Array:
    """x (M, K) times the weights (K, N), in at least fp32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    w = lax.stop_gradient(dequantize(QuantizedWeights(values, scales, options.format), wide))
    return jnp.dot(x.astype(wide), w, precision="highest").astype(options.out_dtype or x.dtype)


def xla(x: jax.Array, values: jax.Array, scales: jax.Array, options: Options) -> jax.Array:
    """The same by XLA's product in x's dtype, accumulated in at least fp32.

    Scales of channels factor out: values, which are exact in x's dtype, are converted while they are multiplied, without a copy, and the
    result is scaled. With groups the weights are first written down in x's dtype, rounded to it.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    precision = "highest" if x.dtype == wide else None
    grouped = options.format.group is not None
    w = dequantize(QuantizedWeights(values, scales, options.format), x.dtype) if grouped else values.astype(x.dtype)
    found = jnp.dot(x, lax.stop_gradient(w), preferred_element_type=wide, precision=precision)
    if not grouped:
        found = found * lax.stop_gradient(scales.astype(wide))[None]
    return found.astype(options.out_dtype or x.dtype)
