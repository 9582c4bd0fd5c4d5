"""The specification of grouped_matmul in plain jax.numpy: all rows times every group's matrix, derivatives by jax."""

import jax
import jax.numpy as jnp

from assay_kernels.grouped_matmul.shapes import Options, accumulated, bounds


def counted(x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options) -> jax.Array:
    """Each row times one matrix, which is what the op needs, though the reference multiplies by all of them."""
    found = jnp.dot(x, w[0].T if options.transpose_w else w[0], preferred_element_type=accumulated(x.dtype))
    return found.astype(options.result(x))


def reference(x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options) -> jax.Array:
    """x: (M, K). w: (groups, K, N), or (groups, N, K). One group after the other, so that memory does not grow with their number."""
    starts, ends = bounds(group_sizes, x.shape[0])
    row = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]

    @jax.checkpoint
    def add(total: jax.Array, group: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        matrix, start, end = group
        own = (row >= start) & (row < end)
        kernel = matrix.T if options.transpose_w else matrix
        product = jnp.dot(jnp.where(own, x, 0), kernel, preferred_element_type=total.dtype)
        return total + jnp.where(own, product, 0), None  # a cotangent that is not this group's is no 0 times NaN either

    zeros = jnp.zeros((x.shape[0], options.columns(w)), accumulated(x.dtype))
    return jax.lax.scan(add, zeros, (w, starts, ends))[0].astype(options.result(x))
