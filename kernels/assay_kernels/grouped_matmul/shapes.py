"""What goes in and out of grouped_matmul, the checks of it, and which rows are a group's."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Options:
    """transpose_w: w is (groups, N, K). out_dtype: of the result; None for x's."""

    transpose_w: bool = False
    out_dtype: jnp.dtype | None = None

    def columns(self, w: jax.Array) -> int:
        """N."""
        return w.shape[1 if self.transpose_w else 2]

    def result(self, x: jax.Array) -> jnp.dtype:
        """The dtype of the product."""
        return x.dtype if self.out_dtype is None else self.out_dtype


def check(x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options) -> None:
    """Raise TypeError or ValueError, in words, for inputs that are not as the op's documentation says."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or w.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype} and w {w.dtype}: both must have one floating point dtype")
    if not jnp.issubdtype(options.result(x), jnp.floating):
        raise TypeError(f"out_dtype = {options.out_dtype}: must be a floating point dtype")
    if not jnp.issubdtype(group_sizes.dtype, jnp.integer):
        raise TypeError(f"group_sizes are {group_sizes.dtype}: must be integers")
    inner = 2 if options.transpose_w else 1
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[inner]:
        form = "(groups, N, K)" if options.transpose_w else "(groups, K, N)"
        raise ValueError(f"x {x.shape} and w {w.shape}: must be (M, K) and {form}")
    if group_sizes.shape != w.shape[:1] or not w.shape[0]:
        raise ValueError(f"group_sizes {group_sizes.shape} for w {w.shape}: must be one for each group, at least one")


def bounds(group_sizes: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """(first row, row after the last) of each group, int32; whatever the sizes are, within the rows that there are."""
    ends = jnp.minimum(jnp.cumsum(jnp.maximum(group_sizes.astype(jnp.int32), 0), dtype=jnp.int32), rows)
    return jnp.concatenate([jnp.zeros((1,), jnp.int32), ends[:-1]]), ends


def accumulated(dtype: jnp.dtype) -> jnp.dtype:
    """What products of that dtype are added up in."""
    return jnp.promote_types(dtype, jnp.float32)
