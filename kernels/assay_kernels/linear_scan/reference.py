"""The specification of linear_scan: by chunks, as products of matrices (state-space duality), and one step at a time.

Letters of the products: n row, k chunk, i and j positions in a chunk, g group, m head of a group, p head_dim, s state.
"""

import dataclasses

import jax
import jax.numpy as jnp

UNROLLED = 8  # steps from chunk to chunk: a loop of its own for few of them doubled the time on CPU


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
    """(y, the state after the last position), by chunks (Dao and Gu 2024, section 6): products within them, a recurrence between them.

    Decays, sums of products and the state are fp32; the factors of products are of x's dtype.
    """
    batch, seq, heads, head_dim = x.shape
    groups = b.shape[2]
    chunk = min(options.chunk, seq) if isinstance(seq, int) else options.chunk  # a symbolic length has no minimum
    x = _chunks(x, chunk)
    x = x.reshape(*x.shape[:3], groups, heads // groups, head_dim)
    b, c = _chunks(b, chunk), _chunks(c, chunk)
    decay = _chunks(log_decay, chunk).reshape(*x.shape[:-1])
    passed = jnp.cumsum(decay, axis=2)  # log of what is left of the state before the chunk
    runs = None if runs is None else _chunks(runs, chunk, "edge")
    outputs = _within(x, passed, b, c, runs)
    kept, added = _at_ends(x, passed, b, runs)
    first = jnp.zeros((batch, heads, head_dim, b.shape[-1]), wide(x)) if state is None else state
    first = jnp.moveaxis(first.reshape(batch, groups, heads // groups, *first.shape[2:]), -1, 2)
    before, last = _between(kept, added, first)
    outputs = outputs + _from_before(passed, c, before, runs)
    outputs = outputs.astype(x.dtype).reshape(batch, x.shape[1] * chunk, heads, head_dim)[:, :seq]
    return outputs, jnp.moveaxis(last, 2, -1).reshape(batch, heads, head_dim, b.shape[-1])


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


def _chunks(x: jax.Array, chunk: int, mode: str = "constant") -> jax.Array:
    """(batch, seq, ...) -> (batch, chunks, chunk, ...). What is filled up has x = 0 and decay 1: it leaves the state as it is."""
    count = (x.shape[1] + chunk - 1) // chunk
    missing = count * chunk - x.shape[1]
    if missing != 0:
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2), mode=mode)
    return x.reshape(x.shape[0], count, chunk, *x.shape[2:])


def _within(x: jax.Array, passed: jax.Array, b: jax.Array, c: jax.Array, runs: jax.Array | None) -> jax.Array:
    """What the positions of a chunk get from one another: (c b^T * decay between them) x, lower triangle."""
    scores = jnp.einsum("nkigs,nkjgs->nkgij", c, b, preferred_element_type=wide(x))
    log = jnp.moveaxis(passed, 2, -1)
    between = log[..., :, None] - log[..., None, :]
    # Masked before exp: above the diagonal the difference is positive and might overflow, which would spoil the gradient.
    decay = jnp.exp(jnp.where(_reach(passed.shape[2], runs), between, -jnp.inf))
    weights = (scores[:, :, :, None] * decay).astype(x.dtype)
    return jnp.einsum("nkgmij,nkjgmp->nkigmp", weights, x, preferred_element_type=wide(x))


def _reach(chunk: int, runs: jax.Array | None) -> jax.Array:
    """(rows, chunks, 1, 1, i, j): True where position i of a chunk sees position j of it."""
    causal = jnp.tril(jnp.ones((chunk, chunk), bool))[None, None, None, None]
    if runs is None:
        return causal
    return causal & (runs[:, :, :, None] == runs[:, :, None, :])[:, :, None, None]


def _at_ends(x: jax.Array, passed: jax.Array, b: jax.Array, runs: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """(what is left of the earlier state at each chunk's end, what the chunk adds to it)."""
    left = jnp.exp(passed[:, :, -1:] - passed)
    kept = jnp.exp(passed[:, :, -1])
    if runs is not None:
        left = jnp.where((runs == runs[:, :, -1:])[..., None, None], left, 0)
        kept = jnp.where(_goes_on(runs)[:, :, -1, None, None], kept, 0)
    added = (x * left[..., None]).astype(x.dtype)
    return kept, jnp.einsum("nkjgs,nkjgmp->nkgsmp", b, added, preferred_element_type=wide(x))


def _between(kept: jax.Array, added: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the state before each chunk, the state after the last)."""

    def step(state: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, added = chunk
        return kept[:, :, None, :, None] * state + added, state

    parts = (jnp.moveaxis(kept, 1, 0), jnp.moveaxis(added, 1, 0))
    unroll = UNROLLED if isinstance(kept.shape[1], int) else 1
    last, before = jax.lax.scan(step, first, parts, unroll=unroll)
    return jnp.moveaxis(before, 0, 1), last


def _from_before(passed: jax.Array, c: jax.Array, before: jax.Array, runs: jax.Array | None) -> jax.Array:
    """What each position gets from the state before its chunk."""
    left = jnp.exp(passed)
    if runs is not None:
        left = jnp.where(_goes_on(runs)[..., None, None], left, 0)
    seen = jnp.einsum("nkigs,nkgsmp->nkigmp", c, before.astype(c.dtype), preferred_element_type=wide(c))
    return seen * left[..., None]


def _goes_on(runs: jax.Array) -> jax.Array:
    """(rows, chunks, i): True where a position is in the run in which the chunk before it ended.

    The first chunk follows its own first position.
    """
    earlier = jnp.concatenate([runs[:, :1, 0], runs[:, :-1, -1]], axis=1)
    return runs == earlier[:, :, None]
