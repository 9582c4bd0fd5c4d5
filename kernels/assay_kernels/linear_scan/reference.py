"""The specification of linear_scan: the recurrence as it is written, position by position."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of linear_scan. chunk: in positions."""

    chunk: int = 64


def reference(
    x: jax.Array,
    log_decay: jax.Array,
    b: jax.Array,
    c: jax.Array,
    runs: jax.Array | None,
    state: jax.Array | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """(y, the state after the last position); the chunk changes nothing."""
    batch, _, heads, head_dim = x.shape
    if state is None:
        state = jnp.zeros((batch, heads, head_dim, b.shape[-1]), wide(x))
    starts = jnp.zeros(x.shape[:2], bool)
    if runs is not None:
        starts = starts.at[:, 1:].set(runs[:, 1:] != runs[:, :-1])

    def one(state: jax.Array, position: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        *arrays, start = position
        y, state = step(*arrays, jnp.where(start[:, None, None, None], 0, state))
        return state, y

    last, y = jax.lax.scan(one, state, tuple(jnp.moveaxis(v, 1, 0) for v in (x, log_decay, b, c, starts)))
    return jnp.moveaxis(y, 0, 1), last


def step(
    x: jax.Array, log_decay: jax.Array, b: jax.Array, c: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(y, h) of one position after `state`, in fp32; y has x's dtype. The arrays are as in `linear_scan`, without an axis of positions."""
    share = x.shape[1] // b.shape[1]
    b, c = (jnp.repeat(part.astype(wide(x)), share, axis=1) for part in (b, c))
    new = x.astype(wide(x))[..., None] * b[:, :, None]
    state = jnp.exp(log_decay)[..., None, None] * state + new
    return jnp.sum(state * c[:, :, None], axis=-1).astype(x.dtype), state


def runs_of(segment_ids: jax.Array) -> jax.Array:
    """(batch, seq) int32: 0 for the first segment of each row, 1 for the second, ...: a segment begins wherever the id changes."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def wide(x: jax.Array) -> jnp.dtype:
    """The dtype of sums: fp32, or fp64 for fp64."""
    return jnp.promote_types(x.dtype, jnp.float32)
