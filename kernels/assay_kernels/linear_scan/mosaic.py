"""linear_scan on Hopper: the forward pass in one pass over memory.

A thread block of one warpgroup has one head of one row and walks over its chunks. The state stays in registers in fp32, and in SMEM as a
factor of products. Of each chunk TMA brings x, b and c, a ring ahead; four products on the tensor cores give the scores c b^T, what
positions get from the chunk's state (c h), what they get from one another, and what the chunk adds to the state. Scores are never in
memory, nor is the state of any chunk.

Shapes: B rows, T positions, H heads, G groups, P head_dim, S state, K chunks, Q positions of a chunk.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from assay_kernels import mosaic as dialect
from assay_kernels.linear_scan.reference import Options, reference
from assay_kernels.target import Target
from assay_kernels.tuning import tuned

Q = 64
ROWS, COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


@dataclasses.dataclass(frozen=True)
class Config:
    """stages: chunks of the ring."""

    stages: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed while jax traces."""

    options: Options
    config: Config


def supports(target: Target, x: jax.Array, log_decay: Any, b: jax.Array, *rest: Any) -> str | None:
    """None, or why not."""
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    if x.dtype not in ("bfloat16", "float16"):
        return f"x is {x.dtype}: must be bfloat16 or float16"
    head_dim, state = x.shape[3], b.shape[3]
    if head_dim not in (64, 128) or state not in (64, 128) or head_dim * state > 64 * 128:
        return f"head_dim {head_dim} and state {state}: must be 64 and 64, 64 and 128, or 128 and 64"
    if x.shape[1] % 8:
        return f"{x.shape[1]} positions are no multiple of 8"
    if not dialect.LAYOUTS_ARE_FOUND and not dialect.interpreting():
        return f"jax {jax.__version__} does not come to an end in its search for the layouts of this kernel's arrays"
    if not x.size:
        return f"x {x.shape} is empty"
    return None


def mosaic(
    x: jax.Array,
    log_decay: jax.Array,
    b: jax.Array,
    c: jax.Array,
    runs: jax.Array | None,
    state: jax.Array | None,
    options: Options,
    config: Config | None = None,
) -> tuple[jax.Array, jax.Array]:
    """As `reference`; the chunk in the options is that of the derivative. config: for measuring."""
    if config is None:
        shape: dict[str, int | str] = {"head_dim": x.shape[3], "state": b.shape[3], "dtype": x.dtype.name}
        config = tuned("linear_scan", "mosaic", shape, exact=("head_dim", "state"), otherwise=Config(2))
    if state is None:
        state = jnp.zeros((x.shape[0], *x.shape[2:], b.shape[3]), jnp.float32)
    return scan(x, log_decay, b, c, runs, state, Plan(options, config))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def scan(
    x: jax.Array,
    log_decay: jax.Array,
    b: jax.Array,
    c: jax.Array,
    runs: jax.Array | None,
    state: jax.Array,
    plan: Plan,
) -> tuple[jax.Array, jax.Array]:
    """The kernel; where it is differentiated, `reference` and its derivative, so that a gradient costs no more than without the kernel."""
    return forward(x, log_decay, b, c, runs, state, plan)


def _fwd(
    x: jax.Array,
    log_decay: jax.Array,
    b: jax.Array,
    c: jax.Array,
    runs: jax.Array | None,
    state: jax.Array,
    plan: Plan,
) -> tuple[Any, Any]:
    call = lambda x, log_decay, b, c, state: reference(x, log_decay, b, c, runs, state, plan.options)
    return jax.vjp(call, x, log_decay, b, c, state)


def _bwd(plan: Plan, transpose: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    *gradients, of_state = transpose(cotangents)
    return *gradients, None, of_state


scan.defvjp(_fwd, _bwd)


def forward(
    x_BTHP: jax.Array,
    log_decay_BTH: jax.Array,
    b_BTGS: jax.Array,
    c_BTGS: jax.Array,
    runs_BT: jax.Array | None,
    state_BHPS: jax.Array,
    plan: Plan,
) -> tuple[jax.Array, jax.Array]:
    """(y, the last state)."""
    (batch, seq, heads, head_dim), (groups, width), dtype = x_BTHP.shape, b_BTGS.shape[2:], x_BTHP.dtype
    share, stages, chunks = heads // groups, plan.config.stages, -(-seq // Q)
    passed_BHT, before_BHT, end_BHT, first_BT = _decays(log_decay_BTH, runs_BT, chunks)
    arrays = [dialect.padded(v, 1, Q) for v in (x_BTHP, b_BTGS, c_BTGS)]
    masked = runs_BT is not None

    def kernel(*refs: Any, rings: Any, vectors: Any, h_smem: Any, out_smem: Any, full: Any) -> None:
        x_gmem, b_gmem, c_gmem, passed_gmem, before_gmem, end_gmem, first_gmem, h_gmem, y_gmem, last_gmem = refs
        x_ring, b_ring, c_ring = rings
        row, head = lax.axis_index("row"), lax.axis_index("head")
        group = lax.div(head, jnp.int32(share))
        of_head = [(passed_gmem, vectors[0]), (before_gmem, vectors[1]), (end_gmem, vectors[2])]

        def fetch(k: Any) -> None:
            slot, part = lax.rem(k, jnp.int32(stages)), pl.ds(k * Q, Q)
            copies = [(x_gmem.at[row, part, head], x_ring)]
            copies += [(b_gmem.at[row, part, group], b_ring), (c_gmem.at[row, part, group], c_ring)]
            copies += [(source.at[row, head, part], ring) for source, ring in of_head]
            copies.append((first_gmem.at[row, part], vectors[3]))
            for source, ring in copies:
                plgpu.copy_gmem_to_smem(source, ring.at[slot], full.at[slot])

        for k in range(min(stages, chunks)):
            fetch(jnp.int32(k))

        def one(k: Any, h: jax.Array) -> jax.Array:
            slot = lax.rem(k, jnp.int32(stages))
            plgpu.barrier_wait(full.at[slot])
            x, b, c = x_ring.at[slot], b_ring.at[slot], c_ring.at[slot]
            passed, before, end, first = (ring.at[slot] for ring in vectors)
            h_smem[...] = h.astype(dtype)
            plgpu.commit_smem()
            scores = dialect.product(c, dialect.transposed(b))
            i, j = (dialect.iota((Q, Q), axis, plgpu.Layout.WGMMA) for axis in (0, 1))
            between = _along(_read(passed, ROWS), Q, 0) - _along(_read(passed, COLUMNS), Q, 1)
            seen = j <= i
            if masked:
                seen = seen & (j >= _along(_read(first, ROWS), Q, 0))
            weights = scores * jnp.exp2(jnp.where(seen, between, -jnp.inf))
            y = dialect.product(c, h_smem) * _along(_read(before, ROWS), head_dim, 0)
            y = dialect.product(weights.astype(dtype), x, onto=y)
            ends = dialect.layout_cast(x[...], plgpu.Layout.WGMMA).astype(jnp.float32)
            ends = (ends * _along(_read(end, ROWS), head_dim, 0)).astype(dtype)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            out_smem[...] = ends
            plgpu.commit_smem()
            h = dialect.product(dialect.transposed(b), out_smem, onto=h * before[Q - 1])
            plgpu.commit_smem()  # no warp writes before all have read the factor
            out_smem[...] = y.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem, y_gmem.at[row, pl.ds(k * Q, Q), head])
            pl.when(k + stages < chunks)(lambda: fetch(k + stages))
            return h

        h = lax.fori_loop(0, chunks, one, dialect.from_gmem(h_gmem.at[row, head], plgpu.Layout.WGMMA))
        last_gmem.at[row, head][...] = h
        plgpu.wait_smem_to_gmem(0)

    def ring(size: int) -> Any:
        return plgpu.SMEM((stages, Q, size), dtype, transforms=dialect.swizzled(size, dtype))

    def held(rows: int) -> Any:
        return plgpu.SMEM((rows, head_dim), dtype, transforms=dialect.swizzled(head_dim, dtype))

    y, last = dialect.kernel(
        kernel,
        name="linear_scan_forward",
        out_type=(
            jax.ShapeDtypeStruct(arrays[0].shape, dtype),
            jax.ShapeDtypeStruct((batch, heads, width, head_dim), jnp.float32),
        ),
        grid=(batch, heads),
        grid_names=("row", "head"),
        scratch_types={
            "rings": [ring(head_dim), ring(width), ring(width)],
            "vectors": [plgpu.SMEM((stages, Q), kind) for kind in (jnp.float32,) * 3 + (jnp.int32,)],
            "h_smem": held(width),
            "out_smem": held(Q),
            "full": plgpu.Barrier(num_arrivals=7, num_barriers=stages),
        },
        approx_math=True,
    )(*arrays, passed_BHT, before_BHT, end_BHT, first_BT, jnp.swapaxes(state_BHPS, 2, 3))
    return y[:, :seq], jnp.swapaxes(last, 2, 3)


def temp_bound(batch: int, seq: int, heads: int, head_dim: int, state: int) -> int:
    """Bytes of temporary memory that the values take at most: three numbers for each position and head, two states of each head."""
    filled = -(-seq // Q) * Q
    return 4 * batch * (4 * heads * filled + filled + 2 * heads * head_dim * state) + (1 << 20)


def _decays(log_decay_BTH: jax.Array, runs_BT: jax.Array | None, chunks: int) -> tuple[jax.Array, ...]:
    """Of each position, up to whole chunks, with decay 1 where they are filled up:

    the sum of log2 decays in its chunk up to it; what is left of the state before the chunk; what is left of its own at the chunk's end
    (all (B, H, T)); and the position in the chunk at which its run begins there (B, T).
    """
    batch, seq, heads = log_decay_BTH.shape
    fill = [(0, 0), (0, chunks * Q - seq)]
    log = jnp.pad(jnp.moveaxis(log_decay_BTH, 1, 2), [(0, 0), *fill]).reshape(batch, heads, chunks, Q)
    passed = jnp.cumsum(log, axis=-1)
    before, end = jnp.exp(passed), jnp.exp(passed[..., -1:] - passed)
    first = jnp.zeros((batch, chunks, Q), jnp.int32)
    if runs_BT is not None:
        runs = jnp.pad(runs_BT, fill, mode="edge").reshape(batch, chunks, Q)
        earlier = jnp.concatenate([runs[:, :1, 0], runs[:, :-1, -1]], axis=1)
        before = jnp.where((runs == earlier[:, :, None])[:, None], before, 0)
        end = jnp.where((runs == runs[:, :, -1:])[:, None], end, 0)
        first = jnp.sum(runs[:, :, None, :] < runs[:, :, :, None], axis=-1, dtype=jnp.int32)
    flat = [v.reshape(batch, heads, chunks * Q) for v in (passed * math.log2(math.e), before, end)]
    return *flat, first.reshape(batch, chunks * Q)


def _along(values: jax.Array, size: int, axis: int) -> jax.Array:
    """A vector of one number for each row (axis 0) or column (1), as a matrix."""
    shape = (values.shape[0], size) if axis == 0 else (size, values.shape[0])
    return lax.broadcast_in_dim(values, shape, (axis,))


def _read(ref: Any, layout: Any) -> jax.Array:
    return dialect.layout_cast(ref[...], layout)
