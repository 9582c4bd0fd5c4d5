"""The forward kernel of attention for Hopper, after FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608, section 3).

Dimensions in names of shapes: B batch, T queries, S keys, N query heads, K key heads, D head_dim, Q and C rows and columns of a block.
"""

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from assay_kernels import mosaic
from assay_kernels.attention.plan import Order
from assay_kernels.attention.shapes import Options, Sizes

LOG2_E = math.log2(math.e)
ROWS = 64  # of queries, that a warpgroup holds
PRODUCER, CONSUMER = 24, 240  # registers of a thread: of the warpgroup that copies, and of the two that compute
HIDDEN = -1e30  # the score of a key that is not seen, in base 2; finite, so that a row of them gives numbers


@dataclasses.dataclass(frozen=True)
class Forward:
    """block_k: keys in a block. stages: blocks of keys and values in shared memory. own_output: whether the output has room of its own
    there, so that the next queries are copied while it is written."""

    block_k: int
    stages: int
    own_output: bool


@dataclasses.dataclass(frozen=True)
class Scores:
    """From q k^T to scores in base 2, and which are seen. uneven: whether the last block of keys ends beyond the keys."""

    sizes: Sizes
    options: Options
    segments: bool
    uneven: bool

    @property
    def scale(self) -> float:
        """Of q k^T."""
        return self.options.scale or 1.0 / math.sqrt(self.sizes.head_dim)

    @property
    def factor(self) -> float:
        """By which a score is still to be multiplied: the scale is part of exp2's argument, unless a soft-cap comes between."""
        return 1.0 if self.options.softcap is not None else self.scale * LOG2_E

    @property
    def masked(self) -> bool:
        """Whether blocks at the edges need a mask."""
        return self.options.causal or self.segments or self.uneven

    def capped(self, s_QC: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """(scores without `factor`, the tanh of the soft-cap)."""
        cap = self.options.softcap
        if cap is None:
            return s_QC, None
        t_QC = jnp.tanh(s_QC * (self.scale / cap))
        return t_QC * (cap * LOG2_E), t_QC

    def seen(
        self,
        q_first: Any,
        k_first: Any,
        offset: Any,
        shape: tuple[int, ...],
        *,
        places: jax.Array | None = None,
        of_keys: bool = False,
    ) -> jax.Array | None:
        """Which scores of a block (queries, keys) are seen by their places; None for all. of_keys: the block is (keys, queries).

        places: 0, 1, … of the columns, read from memory: an iota is moved out of the loop, where it takes a register for each column.
        """
        rows = mosaic.iota(shape, 0, plgpu.Layout.WGMMA)
        columns = (
            mosaic.iota(shape, 1, plgpu.Layout.WGMMA) if places is None else lax.broadcast_in_dim(places, shape, [1])
        )
        parts = []
        if of_keys:  # what differs from block to block is added to the rows, of which a thread has two
            k, first = rows + k_first, rows + (k_first - q_first - offset)
            if self.options.causal:
                parts.append(columns >= first)
            if self.options.window is not None:
                parts.append(columns < first + self.options.window)
        else:
            k, last = columns + k_first, rows + (q_first + offset)
            if self.options.causal:
                parts.append(k <= last)
            if self.options.window is not None:
                parts.append(k > last - self.options.window)
        if self.uneven:
            parts.append(k < self.sizes.keys)
        return functools.reduce(operator.and_, parts) if parts else None


def numbers(*shape: int, dtype: Any = jnp.float32) -> Any:
    """Shared memory for numbers of rows or columns."""
    return plgpu.SMEM(shape, dtype)


def tiles(*shape: int, dtype: Any) -> Any:
    """Shared memory for blocks (…, rows, head_dim) that are copied and multiplied."""
    return plgpu.SMEM(shape, dtype, transforms=mosaic.swizzled(shape[-1], dtype))


def zeros(rows: int, columns: int) -> jax.Array:
    """fp32, as wgmma holds its results."""
    return mosaic.layout_cast(jnp.zeros((rows, columns), jnp.float32), plgpu.Layout.WGMMA)


def loaded(ref: Any, axis: int) -> jax.Array:
    """The numbers of rows (axis 0) or columns (1) of a block, from shared memory."""
    return mosaic.layout_cast(ref[...], plgpu.Layout.WGMMA.reduce(1 - axis))


def take(refs: list[Any], count: int, *, there: bool = True) -> Any:
    """The first `count` references, which are removed; where they are not there, None as often."""
    if not there:
        return (None,) * count
    found = refs[:count]
    del refs[:count]
    return found


def same(ids_of_rows: Any, ids_of_columns: Any, shape: tuple[int, ...]) -> jax.Array:
    """Where the row's segment is the column's; from references."""
    rows, columns = (loaded(ref, axis) for axis, ref in enumerate((ids_of_rows, ids_of_columns)))
    return lax.broadcast_in_dim(rows, shape, [0]) == lax.broadcast_in_dim(columns, shape, [1])


def slot_of(step: Any, stages: int) -> Any:
    """The place in shared memory of the block that comes at that step, from 0 on."""
    return step & (stages - 1) if stages & (stages - 1) == 0 else lax.rem(step, stages)


def walk(order: Order, programs: int) -> tuple[Any, Any]:
    """(how many tiles this program works on, from the count of its tiles before to a tile's index): back and forth over the programs, so
    that who had the longest of a round has the shortest of the next."""
    mine = lax.axis_index("program")
    rounds = -(-order.tiles // programs)

    def index(turn: Any) -> Any:
        return turn * programs + jnp.where(turn % 2 == 0, mine, programs - 1 - mine)

    return jnp.where(index(jnp.int32(rounds - 1)) < order.tiles, rounds, rounds - 1), index


def forward(
    q_BTND: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    q_ids_BT: jax.Array | None,
    k_ids_BS: jax.Array | None,
    spans: jax.Array,
    offset: int | jax.Array,
    scores: Scores,
    config: Forward,
    order: Order,
    programs: int,
) -> tuple[jax.Array, jax.Array]:
    """(output, lse of (B, N, T rounded up to blocks), in base 2). spans: of blocks of 128 queries; offset: int32 (1,).

    Segment ids are padded to whole blocks.
    """
    sizes = scores.sizes
    q_BTND = mosaic.in_tiles(q_BTND, 1, 2 * ROWS)
    k_BSKD, v_BSKD = (mosaic.in_tiles(x, 1, config.block_k) for x in (k_BSKD, v_BSKD))
    D, C, stages = sizes.head_dim, config.block_k, config.stages
    dtype = q_BTND.dtype
    segments = scores.segments
    factor = scores.factor
    hidden = max(HIDDEN / factor, -3e38)
    # Where the running maximum begins: far above a hidden score, so that its weight is exactly 0 however products are rounded, and far
    # below every other.
    lowest = hidden * factor / 2

    def body(*references: Any) -> None:
        refs = list(references)
        q_ref, k_ref, v_ref, spans_ref = take(refs, 4)
        (offset_ref,) = take(refs, 1, there=not isinstance(offset, int))
        (places_ref,) = take(refs, 1)
        q_ids_ref, k_ids_ref = take(refs, 2, there=segments)
        out_ref, lse_ref, q_smem, k_smem, v_smem, o_smem, lse_smem, places_smem = take(refs, 8)
        q_ids_smem, k_ids_smem = take(refs, 2, there=segments)
        places_ready, q_ready, q_free, k_ready, k_free, v_ready, v_free, turn = refs
        group = lax.axis_index("group")
        trips, index = walk(order, programs)

        def bounds(count: Any) -> Any:
            pair, block = order.tile(index(count))
            batch, head = pair // sizes.heads, pair % sizes.heads
            row = batch if segments else 0
            return batch, head, block, [spans_ref[row, block, i] for i in range(4)]

        def produce(count: Any, step: Any) -> Any:
            batch, head, block, (first, _, _, end) = bounds(count)
            kv_head = head // sizes.group

            def copy(j: Any, step: Any) -> Any:
                slot = slot_of(step, stages)
                keys = batch, pl.ds(j * C, C), kv_head
                pl.when(step >= stages)(lambda: plgpu.barrier_wait(k_free.at[slot]))
                plgpu.copy_gmem_to_smem(k_ref.at[keys], k_smem.at[slot], k_ready.at[slot])
                if segments:
                    plgpu.copy_gmem_to_smem(k_ids_ref.at[batch, pl.ds(j * C, C)], k_ids_smem.at[slot], k_ready.at[slot])

                @pl.when(j == first)
                def queries() -> None:
                    for g in range(2):
                        pl.when(count > 0)(functools.partial(plgpu.barrier_wait, q_free.at[g]))
                        rows = batch, pl.ds(block * 2 * ROWS + g * ROWS, ROWS), head
                        plgpu.copy_gmem_to_smem(q_ref.at[rows], q_smem.at[g], q_ready.at[g])
                        if segments:
                            plgpu.copy_gmem_to_smem(q_ids_ref.at[rows[:2]], q_ids_smem.at[g], q_ready.at[g])

                pl.when(step >= stages)(lambda: plgpu.barrier_wait(v_free.at[slot]))
                plgpu.copy_gmem_to_smem(v_ref.at[keys], v_smem.at[slot], v_ready.at[slot])
                return step + 1

            return lax.fori_loop(first, end, copy, step)

        def give_turn() -> None:
            plgpu.barrier_arrive(turn.at[1 - group])

        def consume(count: Any, step: Any) -> Any:
            batch, head, block, (first, whole_first, whole_end, end) = bounds(count)
            q_first = block * 2 * ROWS + group * ROWS
            qs = q_smem.at[group]
            shift = offset if isinstance(offset, int) else offset_ref[0]

            def softmax(s_QC: jax.Array, o_QD: jax.Array, m_Q: jax.Array, l_Q: jax.Array, j: Any, step: Any) -> Any:
                """(weights, output so far, maximum, sum) with the scores of block j."""

                def masked(s_QC: jax.Array) -> jax.Array:
                    if segments:
                        ids = q_ids_smem.at[group], k_ids_smem.at[slot_of(step, stages)]
                        s_QC = jnp.where(same(*ids, s_QC.shape), s_QC, hidden)
                    places = loaded(places_smem, 1)
                    seen = scores.seen(q_first, j * C, shift, s_QC.shape, places=places)
                    return s_QC if seen is None else jnp.where(seen, s_QC, hidden)

                s_QC, _ = scores.capped(s_QC)
                if scores.masked:
                    at_the_edge = (j < whole_first) | (j >= whole_end)
                    s_QC = lax.cond(at_the_edge, masked, lambda s_QC: s_QC, s_QC)
                top_Q = jnp.maximum(m_Q, jnp.max(s_QC, axis=1) * factor)
                p_QC = jnp.exp2(s_QC * factor - lax.broadcast_in_dim(top_Q, s_QC.shape, [0]))
                alpha_Q = jnp.exp2(m_Q - top_Q)
                l_Q = l_Q * alpha_Q + jnp.sum(p_QC, axis=1)
                o_QD = o_QD * lax.broadcast_in_dim(alpha_Q, o_QD.shape, [0])
                return p_QC.astype(dtype), o_QD, top_Q, l_Q

            plgpu.barrier_wait(q_ready.at[group])
            plgpu.barrier_wait(k_ready.at[slot_of(step, stages)])
            s_QC = mosaic.product(qs, mosaic.transposed(k_smem.at[slot_of(step, stages)]))

            def one(j: Any, carry: Any) -> Any:
                s_QC, o_QD, m_Q, l_Q, step = carry
                slot, following = slot_of(step, stages), slot_of(step + 1, stages)
                p_QC, o_QD, m_Q, l_Q = softmax(s_QC, o_QD, m_Q, l_Q, j, step)
                plgpu.barrier_arrive(k_free.at[slot])
                plgpu.barrier_wait(k_ready.at[following])
                plgpu.barrier_wait(v_ready.at[slot])
                plgpu.barrier_wait(turn.at[group])

                s_QC, o_QD = mosaic.products(
                    (qs, mosaic.transposed(k_smem.at[following]), zeros(ROWS, C)),
                    (p_QC, v_smem.at[slot], o_QD),
                    started=give_turn,
                )
                plgpu.barrier_arrive(v_free.at[slot])
                return s_QC, o_QD, m_Q, l_Q, step + 1

            rows_layout = plgpu.Layout.WGMMA.reduce(1)
            carry = (
                s_QC,
                zeros(ROWS, D),
                mosaic.layout_cast(jnp.full((ROWS,), lowest, jnp.float32), rows_layout),
                mosaic.layout_cast(jnp.zeros((ROWS,), jnp.float32), rows_layout),
                step,
            )
            s_QC, o_QD, m_Q, l_Q, step = lax.fori_loop(first, end - 1, one, carry)
            p_QC, o_QD, m_Q, l_Q = softmax(s_QC, o_QD, m_Q, l_Q, end - 1, step)
            if config.own_output:
                plgpu.barrier_arrive(q_free.at[group])
            slot = slot_of(step, stages)
            plgpu.barrier_arrive(k_free.at[slot])
            plgpu.barrier_wait(v_ready.at[slot])
            plgpu.barrier_wait(turn.at[group])
            (o_QD,) = mosaic.products((p_QC, v_smem.at[slot], o_QD), started=give_turn)
            plgpu.barrier_arrive(v_free.at[slot])
            some_Q = l_Q > 0.0
            o_QD = o_QD * lax.broadcast_in_dim(jnp.where(some_Q, 1.0 / l_Q, 0.0), o_QD.shape, [0])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            place = o_smem.at[group] if config.own_output else qs
            place[...] = o_QD.astype(dtype)
            lse_smem.at[group][...] = jnp.where(some_Q, m_Q + jnp.log(l_Q) * LOG2_E, -jnp.inf)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(place, out_ref.at[batch, pl.ds(q_first, ROWS), head])
            plgpu.copy_smem_to_gmem(lse_smem.at[group], lse_ref.at[batch, head, pl.ds(q_first, ROWS)])
            if not config.own_output:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(q_free.at[group])
            return step + 1

        @pl.when(group == 2)
        def producer() -> None:
            plgpu.set_max_registers(PRODUCER, action="decrease")
            plgpu.copy_gmem_to_smem(places_ref, places_smem, places_ready)
            steps = lax.fori_loop(0, trips, produce, jnp.int32(0))
            for slot in range(stages):  # what was handed over last is given back as well
                for free in (k_free, v_free):
                    pl.when(steps > slot)(functools.partial(plgpu.barrier_wait, free.at[slot]))
            for g in range(2):
                plgpu.barrier_wait(q_free.at[g])

        @pl.when(group < 2)
        def consumers() -> None:
            plgpu.set_max_registers(CONSUMER, action="increase")
            plgpu.barrier_wait(places_ready)
            pl.when(group == 1)(lambda: plgpu.barrier_arrive(turn.at[0]))
            lax.fori_loop(0, trips, consume, jnp.int32(0))
            pl.when(group == 0)(lambda: plgpu.barrier_wait(turn.at[0]))
            plgpu.wait_smem_to_gmem(0)

    scratch = [
        tiles(2, ROWS, D, dtype=dtype),
        tiles(stages, C, D, dtype=dtype),
        tiles(stages, C, D, dtype=dtype),
        tiles(2, ROWS, D, dtype=dtype) if config.own_output else numbers(1),
        numbers(2, ROWS),
        numbers(C, dtype=jnp.int32),
        *((numbers(2, ROWS, dtype=jnp.int32), numbers(stages, C, dtype=jnp.int32)) if segments else ()),
        plgpu.Barrier(),
        plgpu.Barrier(num_arrivals=2 if segments else 1, num_barriers=2),
        plgpu.Barrier(num_barriers=2),
        plgpu.Barrier(num_arrivals=2 if segments else 1, num_barriers=stages),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_barriers=2),
    ]
    lse = jax.ShapeDtypeStruct((sizes.batch, sizes.heads, order.blocks * 2 * ROWS), jnp.float32)
    call = mosaic.kernel(
        body,
        name="attention_forward",
        out_type=[jax.ShapeDtypeStruct(q_BTND.shape, dtype), lse],
        grid=(programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="group",
        scratch_types=scratch,
        approx_math=True,
    )
    operands = [
        q_BTND,
        k_BSKD,
        v_BSKD,
        spans,
        *(() if isinstance(offset, int) else (offset,)),
        jnp.arange(C, dtype=jnp.int32),
        *((q_ids_BT, k_ids_BS) if segments else ()),
    ]
    out, found = call(*operands)
    return out[:, : sizes.queries], found
