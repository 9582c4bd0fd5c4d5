"""The recurrence of Mamba-2: in chunks, as products of matrices (state-space duality), and one step at a time.

Dao and Gu 2024 (arXiv:2405.21060). For each head, with a state h of (head_dim, state) numbers:

    h_t = exp(log_decay_t) h_{t-1} + x_t b_t^T,    y_t = h_t c_t

A row may hold several documents one after another; h is 0 again before the first position of each.
Letters of the products: n row, k chunk, i and j positions in a chunk, g group, m head of a group, p head_dim, s state.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

UNROLLED = 8  # steps from chunk to chunk: a loop of its own for few of them doubled the time on CPU

State = Float[Array, "batch heads head_dim state"]
"""h after some position, fp32."""


def ssd(
    x: Float[Array, "batch seq heads head_dim"],
    log_decay: Float[Array, "batch seq heads"],
    b: Float[Array, "batch seq groups state"],
    c: Float[Array, "batch seq groups state"],
    *,
    chunk: int,
    runs: Int[Array, "batch seq"] | None = None,
    state: State | None = None,
) -> tuple[Float[Array, "batch seq heads head_dim"], State]:
    """(y, h after the last position), by chunks of `chunk` positions (section 6): products within them, a recurrence between them.

    log_decay: fp32, at most 0. heads: a multiple of groups; consecutive heads share b and c. runs: numbers of the documents, as
    `runs_of` gives them. state: h before the first position, 0 without it; the first run goes on from it.
    y has x's dtype. Decays, sums of products and h are fp32; the factors of products are of x's dtype.
    """
    batch, seq, heads, head_dim = x.shape
    groups, chunk = b.shape[2], min(chunk, seq) if isinstance(seq, int) else chunk  # a symbolic length has no minimum
    x = _chunks(x, chunk)
    x = x.reshape(*x.shape[:3], groups, heads // groups, head_dim)
    b, c = _chunks(b, chunk), _chunks(c, chunk)
    decay = _chunks(log_decay, chunk).reshape(*x.shape[:-1])
    passed = jnp.cumsum(decay, axis=2)  # log of what is left of the state before the chunk
    runs = None if runs is None else _chunks(runs, chunk, "edge")
    outputs = _within(x, passed, b, c, runs)
    kept, added = _at_ends(x, passed, b, runs)
    first = jnp.zeros((batch, heads, head_dim, b.shape[-1]), jnp.float32) if state is None else state
    first = jnp.moveaxis(first.reshape(batch, groups, heads // groups, *first.shape[2:]), -1, 2)
    before, last = _between(kept, added, first)
    outputs = outputs + _from_before(passed, c, before, runs)
    outputs = outputs.astype(x.dtype).reshape(batch, x.shape[1] * chunk, heads, head_dim)[:, :seq]
    return outputs, jnp.moveaxis(last, 2, -1).reshape(batch, heads, head_dim, b.shape[-1])


def ssd_step(
    x: Float[Array, "batch heads head_dim"],
    log_decay: Float[Array, "batch heads"],
    b: Float[Array, "batch groups state"],
    c: Float[Array, "batch groups state"],
    state: State,
) -> tuple[Float[Array, "batch heads head_dim"], State]:
    """(y, h) of one position after `state`: the recurrence as it is written, in fp32; y has x's dtype."""
    share = x.shape[1] // b.shape[1]
    b, c = (jnp.repeat(part.astype(jnp.float32), share, axis=1) for part in (b, c))
    new = x.astype(jnp.float32)[..., None] * b[:, :, None]
    state = jnp.exp(log_decay)[..., None, None] * state + new
    return jnp.sum(state * c[:, :, None], axis=-1).astype(x.dtype), state


def runs_of(segment_ids: Int[Array, "batch seq"]) -> Int[Array, "batch seq"]:
    """0 for the first segment of each row, 1 for the second, ...: a segment begins wherever the id changes."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def _chunks(x: Array, chunk: int, mode: str = "constant") -> Array:
    """(batch, seq, ...) -> (batch, chunks, chunk, ...). What is filled up has x = 0 and decay 1: it leaves the state as it is."""
    count = (x.shape[1] + chunk - 1) // chunk
    missing = count * chunk - x.shape[1]
    if missing != 0:
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2), mode=mode)
    return x.reshape(x.shape[0], count, chunk, *x.shape[2:])


def _within(x: Array, passed: Array, b: Array, c: Array, runs: Array | None) -> Array:
    """What the positions of a chunk get from one another: (c b^T * decay between them) x, lower triangle."""
    scores = jnp.einsum("nkigs,nkjgs->nkgij", c, b, preferred_element_type=jnp.float32)
    log = jnp.moveaxis(passed, 2, -1)
    between = log[..., :, None] - log[..., None, :]
    # Masked before exp: above the diagonal the difference is positive and might overflow, which would spoil the gradient.
    decay = jnp.exp(jnp.where(_reach(passed.shape[2], runs), between, -jnp.inf))
    weights = (scores[:, :, :, None] * decay).astype(x.dtype)
    return jnp.einsum("nkgmij,nkjgmp->nkigmp", weights, x, preferred_element_type=jnp.float32)


def _reach(chunk: int, runs: Array | None) -> Bool[Array, "rows chunks 1 1 chunk chunk"]:
    """True where position i of a chunk sees position j of it."""
    causal = jnp.tril(jnp.ones((chunk, chunk), bool))[None, None, None, None]
    if runs is None:
        return causal
    return causal & (runs[:, :, :, None] == runs[:, :, None, :])[:, :, None, None]


def _at_ends(x: Array, passed: Array, b: Array, runs: Array | None) -> tuple[Array, Array]:
    """(what is left of the earlier state at each chunk's end, what the chunk adds to it)."""
    left = jnp.exp(passed[:, :, -1:] - passed)
    kept = jnp.exp(passed[:, :, -1])
    if runs is not None:
        left = jnp.where((runs == runs[:, :, -1:])[..., None, None], left, 0)
        kept = jnp.where(_goes_on(runs)[:, :, -1, None, None], kept, 0)
    added = (x * left[..., None]).astype(x.dtype)
    return kept, jnp.einsum("nkjgs,nkjgmp->nkgsmp", b, added, preferred_element_type=jnp.float32)


def _between(kept: Array, added: Array, first: Array) -> tuple[Array, Array]:
    """(the state before each chunk, the state after the last)."""

    def step(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, added = chunk
        return kept[:, :, None, :, None] * state + added, state

    parts = (jnp.moveaxis(kept, 1, 0), jnp.moveaxis(added, 1, 0))
    unroll = UNROLLED if isinstance(kept.shape[1], int) else 1
    last, before = jax.lax.scan(step, first, parts, unroll=unroll)
    return jnp.moveaxis(before, 0, 1), last


def _from_before(passed: Array, c: Array, before: Array, runs: Array | None) -> Array:
    """What each position gets from the state before its chunk."""
    left = jnp.exp(passed)
    if runs is not None:
        left = jnp.where(_goes_on(runs)[..., None, None], left, 0)
    seen = jnp.einsum("nkigs,nkgsmp->nkigmp", c, before.astype(c.dtype), preferred_element_type=jnp.float32)
    return seen * left[..., None]


def _goes_on(runs: Array) -> Bool[Array, "batch chunks chunk"]:
    """True where a position is in the run in which the chunk before it ended; the first chunk follows its own first position."""
    earlier = jnp.concatenate([runs[:, :1, 0], runs[:, :-1, -1]], axis=1)
    return runs == earlier[:, :, None]
