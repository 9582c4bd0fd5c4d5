"""The backward kernels of attention for Hopper: one for the queries' gradient, one for the keys' and the values'.

Each owns its rows, so nothing is added up in memory and the result does not depend on the order of blocks. Names of shapes as in
mosaic_forward.py; R is a block of rows that a warpgroup holds, C one that comes and goes.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from assay_kernels import mosaic
from assay_kernels.attention.mosaic_forward import (
    CONSUMER,
    PRODUCER,
    ROWS,
    Scores,
    loaded,
    numbers,
    same,
    slot_of,
    take,
    tiles,
    zeros,
)
from assay_kernels.attention.plan import Order

Which = Literal["both", "keys", "values"]


@dataclasses.dataclass(frozen=True)
class Backward:
    """groups: warpgroups that compute, of 64 rows each. block: rows that come and go. stages: of them in shared memory."""

    groups: int
    block: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What both kernels read: lse in base 2 and delta are fp32 (B, N, T rounded up), ids int32 (B, T or S rounded up) or None."""

    q_BTND: jax.Array
    k_BSKD: jax.Array
    v_BSKD: jax.Array
    do_BTND: jax.Array
    lse_BNT: jax.Array
    delta_BNT: jax.Array
    q_ids_BT: jax.Array | None
    k_ids_BS: jax.Array | None

    def operands(self, rows: int, columns: int) -> list[jax.Array]:
        """Those that there are, in order; for the interpreter in whole blocks."""
        q, do = (mosaic.in_tiles(x, 1, rows) for x in (self.q_BTND, self.do_BTND))
        k, v = (mosaic.in_tiles(x, 1, columns) for x in (self.k_BSKD, self.v_BSKD))
        ids = [] if self.q_ids_BT is None or self.k_ids_BS is None else [self.q_ids_BT, self.k_ids_BS]
        return [q, k, v, do, self.lse_BNT, self.delta_BNT, *ids]


def weights(scores: Scores, s_RC: jax.Array, lse_RC: jax.Array, hide: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(weights, weights times the soft-cap's derivative) in `dtype`, from q k^T. hide: weights -> those that are seen."""
    s_RC, t_RC = scores.capped(s_RC)
    p_RC = jnp.exp2(s_RC * scores.factor - lse_RC)
    seen_RC = hide(p_RC.astype(dtype))
    return seen_RC, seen_RC if t_RC is None else hide((p_RC * (1.0 - t_RC * t_RC)).astype(dtype))


def of_queries(
    given: Inputs, spans: jax.Array, offset: int | jax.Array, scores: Scores, config: Backward, order: Order
) -> jax.Array:
    """The gradient of q. spans: of blocks of groups x 64 queries."""
    sizes, dtype, segments = scores.sizes, given.q_BTND.dtype, scores.segments
    D, C, stages, groups = sizes.head_dim, config.block, config.stages, config.groups

    def body(*references: Any) -> None:
        refs = list(references)
        q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref = take(refs, 6)
        q_ids_ref, k_ids_ref = take(refs, 2, there=segments)
        spans_ref, places_ref = take(refs, 2)
        (offset_ref,) = take(refs, 1, there=not isinstance(offset, int))
        dq_ref, places_smem, q_smem, do_smem, lse_smem, delta_smem, k_smem, v_smem = take(refs, 8)
        q_ids_smem, k_ids_smem = take(refs, 2, there=segments)
        rows_ready, ready, free = refs
        group = lax.axis_index("group")
        pair, block = order.tile(lax.axis_index("program"))
        batch, head = pair // sizes.heads, pair % sizes.heads
        first, whole_first, whole_end, end = (spans_ref[batch if segments else 0, block, i] for i in range(4))

        def copy(j: Any, step: Any) -> Any:
            slot = slot_of(step, stages)
            pl.when(step >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
            keys = batch, pl.ds(j * C, C), head // sizes.group
            plgpu.copy_gmem_to_smem(k_ref.at[keys], k_smem.at[slot], ready.at[slot])
            plgpu.copy_gmem_to_smem(v_ref.at[keys], v_smem.at[slot], ready.at[slot])
            if segments:
                plgpu.copy_gmem_to_smem(k_ids_ref.at[keys[:2]], k_ids_smem.at[slot], ready.at[slot])
            return step + 1

        @pl.when(group == groups)
        def producer() -> None:
            plgpu.set_max_registers(PRODUCER, action="decrease")
            for g in range(groups):
                part = pl.ds((block * groups + g) * ROWS, ROWS)
                plgpu.copy_gmem_to_smem(places_ref, places_smem.at[g], rows_ready.at[g])
                for source, target in ((q_ref, q_smem), (do_ref, do_smem)):
                    plgpu.copy_gmem_to_smem(source.at[batch, part, head], target.at[g], rows_ready.at[g])
                for source, target in ((lse_ref, lse_smem), (delta_ref, delta_smem)):
                    plgpu.copy_gmem_to_smem(source.at[batch, head, part], target.at[g], rows_ready.at[g])
                if segments:
                    plgpu.copy_gmem_to_smem(q_ids_ref.at[batch, part], q_ids_smem.at[g], rows_ready.at[g])
            drain(free, stages, lax.fori_loop(first, end, copy, jnp.int32(0)))

        @pl.when(group < groups)
        def consumers() -> None:
            plgpu.set_max_registers(CONSUMER, action="increase")
            q_first = (block * groups + group) * ROWS
            qs, dos = q_smem.at[group], do_smem.at[group]
            plgpu.barrier_wait(rows_ready.at[group])
            lse_R, delta_R = (loaded(x.at[group], 0) for x in (lse_smem, delta_smem))
            shift = offset if isinstance(offset, int) else offset_ref[0]

            def place_of(j: Any) -> Any:
                return slot_of(j - first, stages)

            def first_products(slot: Any) -> list[tuple[Any, Any, jax.Array]]:
                keys, values = mosaic.transposed(k_smem.at[slot]), mosaic.transposed(v_smem.at[slot])
                return [(qs, keys, zeros(ROWS, C)), (dos, values, zeros(ROWS, C))]

            def rounded(s_RC: jax.Array, dp_RC: jax.Array, j: Any) -> jax.Array:
                def hidden(p_RC: jax.Array) -> jax.Array:
                    if segments:
                        ids = q_ids_smem.at[group], k_ids_smem.at[place_of(j)]
                        p_RC = jnp.where(same(*ids, p_RC.shape), p_RC, jnp.zeros((), p_RC.dtype))
                    places = loaded(places_smem.at[group], 1)
                    seen = scores.seen(q_first, j * C, shift, p_RC.shape, places=places)
                    return p_RC if seen is None else jnp.where(seen, p_RC, jnp.zeros((), p_RC.dtype))

                hide = at_the_edge(scores, (j < whole_first) | (j >= whole_end), hidden)
                lse_RC, delta_RC = (lax.broadcast_in_dim(x_R, s_RC.shape, [0]) for x_R in (lse_R, delta_R))
                slope_RC = weights(scores, s_RC, lse_RC, hide, jnp.float32)[1]
                return (slope_RC * (dp_RC - delta_RC)).astype(dtype)

            def one(j: Any, carry: Any) -> Any:
                s_RC, dp_RC, dq_RD = carry
                slot, following = place_of(j), place_of(j + 1)
                ds_RC = rounded(s_RC, dp_RC, j)
                plgpu.barrier_wait(ready.at[following])
                s_RC, dp_RC, dq_RD = mosaic.products(*first_products(following), (ds_RC, k_smem.at[slot], dq_RD))
                plgpu.barrier_arrive(free.at[slot])
                return s_RC, dp_RC, dq_RD

            plgpu.barrier_wait(ready.at[place_of(first)])
            s_RC, dp_RC = mosaic.products(*first_products(place_of(first)))
            s_RC, dp_RC, dq_RD = lax.fori_loop(first, end - 1, one, (s_RC, dp_RC, zeros(ROWS, D)))
            (dq_RD,) = mosaic.products((rounded(s_RC, dp_RC, end - 1), k_smem.at[place_of(end - 1)], dq_RD))
            plgpu.barrier_arrive(free.at[place_of(end - 1)])
            qs[...] = (dq_RD * scores.scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(qs, dq_ref.at[batch, pl.ds(q_first, ROWS), head])
            plgpu.wait_smem_to_gmem(0)

    operands = given.operands(groups * ROWS, C)
    scratch = [
        numbers(groups, C, dtype=jnp.int32),
        *(
            tiles(groups, ROWS, D, dtype=dtype),
            tiles(groups, ROWS, D, dtype=dtype),
            numbers(groups, ROWS),
            numbers(groups, ROWS),
        ),
        *(tiles(stages, C, D, dtype=dtype), tiles(stages, C, D, dtype=dtype)),
        *((numbers(groups, ROWS, dtype=jnp.int32), numbers(stages, C, dtype=jnp.int32)) if segments else ()),
        plgpu.Barrier(num_arrivals=6 if segments else 5, num_barriers=groups),
        plgpu.Barrier(num_arrivals=3 if segments else 2, num_barriers=stages),
        plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
    ]
    call = _kernel(body, "attention_backward_queries", operands[0], groups, order.tiles, scratch)
    found: jax.Array = call(
        *operands, spans, jnp.arange(C, dtype=jnp.int32), *(() if isinstance(offset, int) else (offset,))
    )
    return found[:, : sizes.queries]


def of_keys(
    given: Inputs,
    spans: jax.Array,
    offset: int | jax.Array,
    scores: Scores,
    config: Backward,
    order: Order,
    which: Which = "both",
) -> tuple[jax.Array, ...]:
    """The gradients of k and v, or of one of them: (dk, dv), (dk,) or (dv,). spans: of blocks of groups x 64 keys, in blocks of queries."""
    sizes, dtype, segments = scores.sizes, given.q_BTND.dtype, scores.segments
    D, C, stages, groups = sizes.head_dim, config.block, config.stages, config.groups
    keys, values = which != "values", which != "keys"

    def body(*references: Any) -> None:
        refs = list(references)
        q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref = take(refs, 6)
        q_ids_ref, k_ids_ref = take(refs, 2, there=segments)
        spans_ref, places_ref = take(refs, 2)
        (offset_ref,) = take(refs, 1, there=not isinstance(offset, int))
        outputs = take(refs, keys + values)
        k_smem, v_smem, places_smem, q_smem, do_smem, lse_smem, delta_smem = take(refs, 7)
        q_ids_smem, k_ids_smem = take(refs, 2, there=segments)
        rows_ready, ready, free = refs
        group = lax.axis_index("group")
        pair, block = order.tile(lax.axis_index("program"))
        batch, kv_head = pair // sizes.kv_heads, pair % sizes.kv_heads
        first, whole_first, whole_end, end = (spans_ref[batch if segments else 0, block, i] for i in range(4))
        length = end - first

        def copy(step: Any, _: None) -> None:
            slot = slot_of(step, stages)
            head = kv_head * sizes.group + step // length
            part = pl.ds((first + lax.rem(step, length)) * C, C)
            pl.when(step >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
            for source, target in ((q_ref, q_smem), (do_ref, do_smem)):
                plgpu.copy_gmem_to_smem(source.at[batch, part, head], target.at[slot], ready.at[slot])
            for source, target in ((lse_ref, lse_smem), (delta_ref, delta_smem)):
                plgpu.copy_gmem_to_smem(source.at[batch, head, part], target.at[slot], ready.at[slot])
            if segments:
                plgpu.copy_gmem_to_smem(q_ids_ref.at[batch, part], q_ids_smem.at[slot], ready.at[slot])

        @pl.when(group == groups)
        def producer() -> None:
            plgpu.set_max_registers(PRODUCER, action="decrease")
            for g in range(groups):
                part = pl.ds((block * groups + g) * ROWS, ROWS)
                plgpu.copy_gmem_to_smem(k_ref.at[batch, part, kv_head], k_smem.at[g], rows_ready.at[g])
                plgpu.copy_gmem_to_smem(places_ref, places_smem.at[g], rows_ready.at[g])
                if keys:
                    plgpu.copy_gmem_to_smem(v_ref.at[batch, part, kv_head], v_smem.at[g], rows_ready.at[g])
                if segments:
                    plgpu.copy_gmem_to_smem(k_ids_ref.at[batch, part], k_ids_smem.at[g], rows_ready.at[g])
            steps = length * sizes.group
            lax.fori_loop(0, steps, copy, None)
            drain(free, stages, steps)

        @pl.when(group < groups)
        def consumers() -> None:
            plgpu.set_max_registers(CONSUMER, action="increase")
            k_first = (block * groups + group) * ROWS
            ks = k_smem.at[group]
            shift = offset if isinstance(offset, int) else offset_ref[0]
            plgpu.barrier_wait(rows_ready.at[group])

            def scores_of(step: Any) -> tuple[Any, Any, jax.Array]:
                return ks, mosaic.transposed(q_smem.at[slot_of(step, stages)]), zeros(ROWS, C)

            def one(step: Any, j: Any, s_RC: jax.Array, sums: Any, following: list[Any]) -> Any:
                slot = slot_of(step, stages)

                def hidden(p_RC: jax.Array) -> jax.Array:
                    if segments:
                        ids = k_ids_smem.at[group], q_ids_smem.at[slot]
                        p_RC = jnp.where(same(*ids, p_RC.shape), p_RC, jnp.zeros((), p_RC.dtype))
                    places = loaded(places_smem.at[group], 1)
                    seen = scores.seen(j * C, k_first, shift, p_RC.shape, places=places, of_keys=True)
                    return p_RC if seen is None else jnp.where(seen, p_RC, jnp.zeros((), p_RC.dtype))

                def along(ref: Any) -> jax.Array:
                    return lax.broadcast_in_dim(loaded(ref.at[slot], 1), (ROWS, C), [1])

                hide = at_the_edge(scores, (j < whole_first) | (j >= whole_end), hidden)
                p_RC, slope_RC = weights(scores, s_RC, along(lse_smem), hide, dtype)
                of_values = [(p_RC, do_smem.at[slot], sums[-1])] if values else []
                if not keys:
                    return mosaic.products(*following, *of_values)
                values_and_do = v_smem.at[group], mosaic.transposed(do_smem.at[slot]), -along(delta_smem)
                dp_RC, *dv_RD = mosaic.products(values_and_do, *of_values)
                ds_RC = (slope_RC.astype(jnp.float32) * dp_RC).astype(dtype)
                return (*mosaic.products(*following, (ds_RC, q_smem.at[slot], sums[0])), *dv_RD)

            def loop(step: Any, carry: Any) -> Any:
                j, s_RC, *sums = carry
                plgpu.barrier_wait(ready.at[slot_of(step + 1, stages)])
                found = one(step, j, s_RC, sums, [scores_of(step + 1)])
                plgpu.barrier_arrive(free.at[slot_of(step, stages)])
                return (jnp.where(j + 1 == end, first, j + 1), *found)

            last = length * sizes.group - 1
            start = lax.rem(last, 1)  # 0, but no constant: wgmma takes none as an index
            plgpu.barrier_wait(ready.at[start])
            carry = (first, *mosaic.products(scores_of(start)), *(zeros(ROWS, D),) * (keys + values))
            _, s_RC, *sums = lax.fori_loop(0, last, loop, carry)
            sums = one(last, end - 1, s_RC, sums, [])
            plgpu.barrier_arrive(free.at[slot_of(last, stages)])
            places = ([ks] if keys else []) + ([v_smem.at[group] if keys else ks] if values else [])
            for place, total, factor in zip(
                places, sums, ([scores.scale] if keys else []) + [1.0] * values, strict=True
            ):
                place[...] = (total * factor).astype(dtype)
            plgpu.commit_smem()
            for place, output in zip(places, outputs, strict=True):
                plgpu.copy_smem_to_gmem(place, output.at[batch, pl.ds(k_first, ROWS), kv_head])
            plgpu.wait_smem_to_gmem(0)

    operands = given.operands(C, groups * ROWS)
    scratch = [
        *(
            tiles(groups, ROWS, D, dtype=dtype),
            tiles(groups, ROWS, D, dtype=dtype) if keys else numbers(1),
            numbers(groups, C, dtype=jnp.int32),
        ),
        *(tiles(stages, C, D, dtype=dtype), tiles(stages, C, D, dtype=dtype), numbers(stages, C), numbers(stages, C)),
        *((numbers(stages, C, dtype=jnp.int32), numbers(groups, ROWS, dtype=jnp.int32)) if segments else ()),
        plgpu.Barrier(num_arrivals=2 + keys + segments, num_barriers=groups),
        plgpu.Barrier(num_arrivals=5 if segments else 4, num_barriers=stages),
        plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
    ]
    name = "attention_backward_" + {"both": "keys_values"}.get(which, which)
    call = _kernel(body, name, [operands[1]] * (keys + values), groups, order.tiles, scratch)
    found = call(*operands, spans, jnp.arange(C, dtype=jnp.int32), *(() if isinstance(offset, int) else (offset,)))
    return tuple(x[:, : sizes.keys] for x in found)


def at_the_edge(scores: Scores, edge: Any, hidden: Any) -> Any:
    """weights -> those that are seen: as they are, or by the mask where the block is at an edge."""
    if not scores.masked:
        return lambda p_RC: p_RC
    return lambda p_RC: lax.cond(edge, hidden, lambda p_RC: p_RC, p_RC)


def drain(free: Any, stages: int, steps: Any) -> None:
    """Wait until every block that was handed over is given back."""
    for slot in range(stages):
        pl.when(steps > slot)(functools.partial(plgpu.barrier_wait, free.at[slot]))


def delta(out: jax.Array, do: jax.Array, dlse: jax.Array | None, columns: int) -> jax.Array:
    """sum(do * out) - dlse of each query, fp32 (B, N, columns): what every weight of its row has in common in the scores' gradient."""
    found = jnp.einsum("btnd,btnd->bnt", do.astype(jnp.float32), out.astype(jnp.float32))
    found = found if dlse is None else found - dlse
    return jnp.pad(found, ((0, 0), (0, 0), (0, columns - found.shape[-1])))


def _kernel(body: Any, name: str, like: Any, groups: int, programs: int, scratch: Any) -> Any:
    return mosaic.kernel(
        body,
        name=name,
        out_type=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like),
        grid=(programs,),
        grid_names=("program",),
        num_threads=groups + 1,
        thread_name="group",
        scratch_types=scratch,
        approx_math=True,
    )
