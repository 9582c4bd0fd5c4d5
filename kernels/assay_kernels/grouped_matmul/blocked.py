"""grouped_matmul in jax.numpy with the arithmetic that it needs: each group's rows block by block, on any device."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from assay_kernels.grouped_matmul.shapes import Options, accumulated, bounds


def blocked(x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options) -> jax.Array:
    """What the reference returns."""
    starts, ends = bounds(group_sizes, x.shape[0])
    return _product(x, w, starts, ends, options)


def block_rows(rows: int, groups: int) -> int:
    """Rows that are multiplied at once: half of a group's on average, as a power of two from 16 to 256.

    The last block of a group is computed whole, so half a block of each group is waste; small blocks waste less, and read w more often.
    """
    return min(256, max(16, 1 << max(0, (rows // (2 * groups)).bit_length() - 1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _product(x: jax.Array, w: jax.Array, starts: jax.Array, ends: jax.Array, options: Options) -> jax.Array:
    """Blocks are written in the order of the rows: what one writes beyond its group the next one overwrites, or else it is 0."""
    rows, size = x.shape[0], block_rows(x.shape[0], w.shape[0])
    padded = jnp.pad(x, ((0, size), (0, 0)))

    def group(out: jax.Array, of: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        matrix, start, end = of
        contracted = (((1,), (1 if options.transpose_w else 0,)), ((), ()))

        def block(i: jax.Array, out: jax.Array) -> jax.Array:
            first = start + i * size
            own = lax.dynamic_slice_in_dim(padded, first, size)
            product = lax.dot_general(own, matrix, contracted, preferred_element_type=accumulated(x.dtype))
            kept = jnp.where(_within(first, size, end), product, 0).astype(out.dtype)
            return lax.dynamic_update_slice_in_dim(out, kept, first, axis=0)

        return lax.fori_loop(0, _count(start, end, size), block, out), None

    zeros = jnp.zeros((rows + size, options.columns(w)), options.result(x))
    return lax.scan(group, zeros, (w, starts, ends))[0][:rows]


def _forward(
    x: jax.Array, w: jax.Array, starts: jax.Array, ends: jax.Array, options: Options
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _product(x, w, starts, ends, options), (x, w, starts, ends)


def _backward(
    options: Options, saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    x, w, starts, ends = saved
    cotangent = cotangent.astype(x.dtype)
    back = Options(not options.transpose_w)
    pair = (cotangent, x) if options.transpose_w else (x, cotangent)
    return _product(cotangent, w, starts, ends, back), _outer(*pair, starts, ends), None, None


_product.defvjp(_forward, _backward)


def _outer(a: jax.Array, b: jax.Array, starts: jax.Array, ends: jax.Array) -> jax.Array:
    """(groups, columns of a, columns of b): of each group the sum over its rows of a_i b_i^T, in a's dtype."""
    size = block_rows(a.shape[0], starts.shape[0])
    padded = [jnp.pad(v, ((0, size), (0, 0))) for v in (a, b)]

    def group(_: None, of: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        start, end = of

        def block(i: jax.Array, total: jax.Array) -> jax.Array:
            first = start + i * size
            own = [jnp.where(_within(first, size, end), lax.dynamic_slice_in_dim(v, first, size), 0) for v in padded]
            return total + lax.dot_general(*own, (((0,), (0,)), ((), ())), preferred_element_type=total.dtype)

        zeros = jnp.zeros((a.shape[1], b.shape[1]), accumulated(a.dtype))
        return None, lax.fori_loop(0, _count(start, end, size), block, zeros).astype(a.dtype)

    return lax.scan(group, None, (starts, ends))[1]


def _within(first: jax.Array, size: int, end: jax.Array) -> jax.Array:
    return (first + jnp.arange(size, dtype=jnp.int32) < end)[:, None]


def _count(start: jax.Array, end: jax.Array, size: int) -> jax.Array:
    return (end - start + size - 1) // size
