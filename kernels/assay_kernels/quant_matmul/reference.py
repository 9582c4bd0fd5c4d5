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
    """The same for scales of channels: they factor out of the product, and XLA converts values while it multiplies, without a copy.

    Values of four and eight bits are exact in x's dtype, products are accumulated in fp32, and scaled there.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    found = jnp.dot(x, lax.stop_gradient(values.astype(x.dtype)), preferred_element_type=wide)
    return (found * lax.stop_gradient(scales.astype(wide))).astype(options.out_dtype or x.dtype)
