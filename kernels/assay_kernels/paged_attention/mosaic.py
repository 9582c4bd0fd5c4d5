"""paged_attention on a Hopper GPU: pages by TMA into a pipeline, products on the tensor cores, one sequence divided over many blocks.

The N / K query heads of a head of keys and their T tokens are the rows of one product, R = T N / K of them, filled up to 64 for each
warpgroup that computes. While decoding most of these rows are empty; the product still takes less time than the memory does
(docs/kernels/paged_attention.md has the arithmetic). An item of work is a (sequence, head of keys, block of rows, split of the sequence).
Each multiprocessor has one thread block, which takes items in turn; its copying warpgroup is ahead of the computing ones, in the next item
already where theirs is about to end, so that memory never rests. Partial results are combined afterwards, in their order.

Where all rows fit in one warpgroup's 64 (decoding), the two that compute take every other block of slots, and are two splits of the
sequence; else they take 64 rows each of every block.

Letters in names of shapes: B sequences, K heads of keys, R rows, S partial results, P slots of a block, D head dimension.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from assay_kernels import mosaic
from assay_kernels.paged_attention.reference import LOWEST
from assay_kernels.paged_attention.shapes import Options, PagedAttention
from assay_kernels.target import Target, current_target
from assay_kernels.tuning import tuned

EXACT = ("rows", "head_dim", "page_size")  # of `key`, what a measured configuration must share
HEAD_DIMS, PAGE_SIZES = (64, 128, 256), (16, 32, 64, 128)
WARPGROUPS, WARPGROUP_ROWS = 2, 64  # that compute, beside one that copies; rows of a product on the tensor cores
SHARED = 232448  # bytes of shared memory that a thread block may have
SPLIT_COST = 1  # blocks of slots that are read in the time that an item's queries and partial results take


@dataclasses.dataclass(frozen=True)
class Config:
    """block: slots of the cache that a step of the pipeline holds. stages: such steps in shared memory. splits: of each sequence, beside
    those among warpgroups. q_stages: items whose queries are in shared memory.
    """

    block: int
    stages: int
    splits: int
    q_stages: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed while jax traces. group: query heads of a head of keys. blocks: of rows. ctas: thread blocks."""

    options: Options
    config: Config
    sequences: int
    tokens: int
    group: int
    kv_heads: int
    head_dim: int
    page_size: int
    has_q_lengths: bool
    ctas: int

    @property
    def alternate(self) -> bool:
        """Whether the warpgroups that compute have the same rows, and take every other block of slots."""
        return self.tokens * self.group <= WARPGROUP_ROWS

    @property
    def rows(self) -> int:
        """Of a warpgroup that are copied in and out: a multiple of 8, as TMA's tiles are; what is in the others is never read."""
        return min(WARPGROUP_ROWS, -(-self.tokens * self.group // 8) * 8)

    @property
    def item_rows(self) -> int:
        """Of an item."""
        return self.rows if self.alternate else WARPGROUPS * self.rows

    @property
    def blocks(self) -> int:
        """Of rows of a head of keys."""
        return -(-self.tokens * self.group // self.item_rows)

    @property
    def partials(self) -> int:
        """Results for each row that are to be combined."""
        return self.config.splits * (WARPGROUPS if self.alternate else 1)

    @property
    def items(self) -> int:
        """Of work."""
        return self.sequences * self.kv_heads * self.blocks * self.config.splits

    @property
    def columns(self) -> int:
        """Of the result that are on their way out at once; fewer where shared memory is full."""
        return 32 if self.head_dim == 256 else 64

    @property
    def copied(self) -> int:
        """Slots that one TMA copy brings."""
        return min(self.page_size, self.config.block)


def refusal(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    q_lengths: jax.Array | None,
    options: Options,
) -> str | None:
    """Why these arguments are none for the kernel, in words, or None."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"multiplies bf16 and fp16 on the tensor cores, these are {q.dtype}"
    if q.shape[3] not in HEAD_DIMS:
        return f"head dimension {q.shape[3]} is none of {HEAD_DIMS}"
    if k_pages.shape[2] not in PAGE_SIZES:
        return f"pages of {k_pages.shape[2]} slots are none of {PAGE_SIZES}"
    if 0 in (q.size, k_pages.size, page_table.size):
        return "there is nothing to read: an argument has no elements"
    return None


def rule(rows: int, heads: int, slots: int, head_dim: int, target: Target) -> Config:
    """rows: of the product of one head of keys. heads: B K. slots: the most of a sequence.

    As many splits as leave the fewest blocks of slots to the thread block that finishes last.
    """
    if rows <= WARPGROUP_ROWS:
        found = Config({64: 128, 128: 64, 256: 64}[head_dim], {64: 4, 128: 4, 256: 2}[head_dim], 1, 2)
        items = heads
    else:
        found = Config({64: 128, 128: 128, 256: 64}[head_dim], 2, 1, 1 if head_dim == 256 else 2)
        items = heads * -(-rows // (WARPGROUPS * WARPGROUP_ROWS))
    steps = -(-slots // found.block)

    def last(splits: int) -> int:
        return -(-items * splits // target.cores) * (-(-steps // splits) + SPLIT_COST)

    return dataclasses.replace(found, splits=min(range(1, min(steps, target.cores) + 1), key=last))


def attend(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    q_lengths: jax.Array | None,
    options: Options,
) -> PagedAttention:
    """As `reference`."""
    shape = key(q, k_pages, page_table, options.window)
    rows, heads, slots, head_dim = (int(shape[name]) for name in ("rows", "heads", "slots", "head_dim"))
    otherwise = rule(rows, heads, slots, head_dim, current_target())
    config = tuned("paged_attention", "mosaic", shape, exact=EXACT, otherwise=otherwise)
    return run(q, k_pages, v_pages, page_table, lengths, q_lengths, options, config)


def key(q: Any, k_pages: Any, page_table: Any, window: int | None) -> dict[str, int | str]:
    """What the best configuration depends on: rows of a product, B K, the most slots that a query sees, D, slots of a page."""
    sequences, tokens, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = k_pages.shape
    slots = page_table.shape[1] * page_size
    return {
        "rows": tokens * heads // kv_heads,
        "heads": sequences * kv_heads,
        "slots": slots if window is None else min(slots, window + tokens - 1),
        "head_dim": head_dim,
        "page_size": page_size,
    }


def fits(rows: int, head_dim: int, page_size: int, config: Config) -> bool:
    """Whether a configuration has the shared memory for such a call in bf16, and an even number of stages where warpgroups alternate."""
    plan = Plan(Options(1.0), config, 1, rows, 1, 1, head_dim, page_size, False, 1)
    return shared_bytes(plan, jnp.bfloat16) <= SHARED and (not plan.alternate or config.stages % WARPGROUPS == 0)


def run(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    q_lengths: jax.Array | None,
    options: Options,
    config: Config,
) -> PagedAttention:
    """`attend` with a configuration."""
    sequences, tokens, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = k_pages.shape
    group = heads // kv_heads
    plan = planned(q, k_pages, q_lengths, options, config)
    if not fits(tokens * group, head_dim, page_size, config):
        raise ValueError(f"{config}: needs more shared memory than there is, or an odd number of stages alternates")
    padding = plan.blocks * plan.item_rows - tokens * group
    q_BKRD = jnp.swapaxes(q.reshape(sequences, tokens, kv_heads, group, head_dim), 1, 2)
    q_BKRD = q_BKRD.reshape(sequences, kv_heads, tokens * group, head_dim)
    q_BKRD = jnp.pad(q_BKRD, ((0, 0), (0, 0), (0, padding), (0, 0)))
    # A copy's worth of slots is one element of the first axis.
    k_PD, v_PD = (x.reshape(-1, plan.copied, head_dim) for x in (k_pages, v_pages))
    out_BKSRD, lse_BKSR = _kernel(plan, q.dtype, jnp.float32 if plan.partials > 1 else q.dtype)(
        q_BKRD, k_PD, v_PD, page_table, lengths, lengths if q_lengths is None else q_lengths
    )
    out, lse = _combined(out_BKSRD, lse_BKSR) if plan.partials > 1 else (out_BKSRD[:, :, 0], lse_BKSR[:, :, 0])
    out = out[:, :, : tokens * group].reshape(sequences, kv_heads, tokens, group, head_dim).astype(q.dtype)
    lse = lse[:, :, : tokens * group].reshape(sequences, kv_heads, tokens, group)
    return PagedAttention(
        jnp.swapaxes(out, 1, 2).reshape(q.shape), jnp.swapaxes(lse, 1, 2).reshape(sequences, tokens, heads)
    )


def planned(q: Any, k_pages: Any, q_lengths: Any, options: Options, config: Config) -> Plan:
    """The plan of a call with a configuration."""
    sequences, tokens, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = k_pages.shape
    given = q_lengths is not None
    plan = Plan(options, config, sequences, tokens, heads // kv_heads, kv_heads, head_dim, page_size, given, 1)
    return dataclasses.replace(plan, ctas=min(current_target().cores, plan.items))


def shared_bytes(plan: Plan, dtype: Any) -> int:
    """Shared memory of a thread block: queries, keys and values of all stages, columns of the result, and 1 KiB for barriers."""
    itemsize, c = jnp.dtype(dtype).itemsize, plan.config
    queries = c.q_stages * (1 if plan.alternate else WARPGROUPS) * WARPGROUP_ROWS * plan.head_dim
    out = WARPGROUPS * WARPGROUP_ROWS * (plan.columns * (4 if plan.partials > 1 else itemsize) + 4)
    return itemsize * (queries + 2 * c.stages * c.block * plan.head_dim) + out + 1024


def temp_bound(plan: Plan, dtype: Any) -> int:
    """Bytes of temporary memory that the op takes at most: queries in the kernel's order, results, and both where they are combined."""
    rows = plan.sequences * plan.kv_heads * plan.blocks * plan.item_rows
    itemsize = jnp.dtype(dtype).itemsize
    of_partials = 4 if plan.partials > 1 else itemsize
    each = plan.head_dim * (3 * itemsize + plan.partials * of_partials + 8) + 4 * (plan.partials + 4)
    return rows * each + (1 << 20)


def _combined(out_BKSRD: jax.Array, lse_BKSR: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The results of the splits as one. A split that saw nothing has lse -inf, and its result may be anything."""
    top = jnp.maximum(jnp.max(lse_BKSR, axis=2, keepdims=True), LOWEST)
    weights = jnp.exp(lse_BKSR - top)
    total = jnp.sum(weights, axis=2, keepdims=True)
    share = (weights / jnp.where(total == 0.0, 1.0, total))[..., None]
    out = jnp.sum(jnp.where(share > 0.0, share * out_BKSRD, 0.0), axis=2)
    lse = jnp.where(total == 0.0, -jnp.inf, top + jnp.log(jnp.where(total == 0.0, 1.0, total)))
    return out, lse[:, :, 0]


def _kernel(plan: Plan, dtype: Any, out_dtype: Any) -> Any:
    c, D = plan.config, plan.head_dim
    copies = c.block // plan.copied
    q_parts, readers = (1, 1) if plan.alternate else (WARPGROUPS, WARPGROUPS)
    kv, of_kv = (c.stages, c.block, D), mosaic.swizzled(D, dtype)
    out = (plan.sequences, plan.kv_heads, plan.partials, plan.blocks * plan.item_rows)
    return mosaic.kernel(
        functools.partial(_body, plan),
        name="paged_attention",
        out_type=(jax.ShapeDtypeStruct((*out, D), out_dtype), jax.ShapeDtypeStruct(out, jnp.float32)),
        grid=(plan.ctas,),
        grid_names=("cta",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        scratch_types={
            "q_smem": plgpu.SMEM((c.q_stages, q_parts, WARPGROUP_ROWS, D), dtype, transforms=of_kv),
            "k_smem": plgpu.SMEM(kv, dtype, transforms=of_kv),
            "v_smem": plgpu.SMEM(kv, dtype, transforms=of_kv),
            "out_smem": plgpu.SMEM(
                (WARPGROUPS, WARPGROUP_ROWS, plan.columns),
                out_dtype,
                transforms=mosaic.swizzled(plan.columns, out_dtype),
            ),
            "lse_smem": plgpu.SMEM((WARPGROUPS, WARPGROUP_ROWS), jnp.float32),
            "q_ready": plgpu.Barrier(num_arrivals=q_parts, num_barriers=c.q_stages),
            "q_free": plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=c.q_stages),
            "k_ready": plgpu.Barrier(num_arrivals=copies, num_barriers=c.stages),
            "v_ready": plgpu.Barrier(num_arrivals=copies, num_barriers=c.stages),
            "k_free": plgpu.Barrier(num_arrivals=readers, num_barriers=c.stages),
            "v_free": plgpu.Barrier(num_arrivals=readers, num_barriers=c.stages),
            "v_clean": plgpu.Barrier(num_arrivals=WARPGROUPS),
        },
        approx_math=True,
    )


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of work, in scalars. first, last: of the slots that its rows see, the first and the one after the last; inner_first,
    inner_last: the same of the slots that each row sees. start, end: its blocks of slots. new: queries of the sequence that stand for
    tokens; at: the position of the first.
    """

    sequence: Any
    head: Any
    block: Any
    split: Any
    new: Any
    at: Any
    first: Any
    last: Any
    inner_first: Any
    inner_last: Any
    start: Any
    end: Any


def _item(plan: Plan, number: Any, lengths: Any, q_lengths: Any) -> Item:
    """The last block of rows comes first: it sees the most slots."""
    c, window = plan.config, plan.options.window
    number, head = _divided(number, plan.kv_heads)
    number, sequence = _divided(number, plan.sequences)
    number, split = _divided(number, c.splits)
    block = plan.blocks - 1 - number
    new = q_lengths[sequence] if plan.has_q_lengths else jnp.int32(plan.tokens)
    at = lengths[sequence] - new
    token, _ = _divided(block * plan.item_rows, plan.group)
    token_last, _ = _divided(block * plan.item_rows + plan.item_rows - 1, plan.group)
    last = jnp.where(token < new, jnp.maximum(at + jnp.minimum(token_last + 1, new), 0), 0)
    inner_last = jnp.maximum(at + token + 1, 0)
    first = jnp.int32(0) if window is None else jnp.clip(inner_last - window, 0, last)
    inner_first = jnp.int32(0) if window is None else jnp.maximum(last - window, 0)
    begin, stop = _divided(first, c.block)[0], _divided(last + c.block - 1, c.block)[0]
    each, _ = _divided(stop - begin + c.splits - 1, c.splits)
    start = jnp.minimum(begin + split * each, stop)
    end = jnp.minimum(start + each, stop)
    return Item(sequence, head, block, split, new, at, first, last, inner_first, inner_last, start, end)


def _divided(x: Any, by: int) -> tuple[Any, Any]:
    """Quotient and remainder of an int32 that is not negative."""
    return lax.div(x, jnp.int32(by)), lax.rem(x, jnp.int32(by))


def _body(plan: Plan, *gmem: Any, **scratch: Any) -> None:
    q_gmem, k_gmem, v_gmem, table_gmem, lengths_gmem, q_lengths_gmem, out_gmem, lse_gmem = gmem
    refs, cta, warpgroup = _Refs(**scratch), lax.axis_index("cta"), lax.axis_index("warpgroup")
    c, (items, _) = plan.config, _divided(plan.items - cta + plan.ctas - 1, plan.ctas)

    def over_items(work: Callable[[Any, Item, Any], None]) -> Any:
        """work: (which of the thread block's items, the item, blocks of slots before it). Returns how many blocks there were."""

        def step(i: Any, before: Any) -> Any:
            item = _item(plan, cta + i * plan.ctas, lengths_gmem, q_lengths_gmem)
            work(i, item, before)
            return before + item.end - item.start

        return lax.fori_loop(0, items, step, jnp.int32(0))

    @pl.when(warpgroup == WARPGROUPS)
    def copies() -> None:
        plgpu.set_max_registers(40, action="decrease")
        count = over_items(functools.partial(_produce, plan, q_gmem, k_gmem, v_gmem, table_gmem, refs))
        for freed, stages, used in (
            (refs.k_free, c.stages, count),
            (refs.v_free, c.stages, count),
            (refs.q_free, c.q_stages, items),
        ):
            for stage in range(stages):
                pl.when(used > stage)(functools.partial(plgpu.barrier_wait, freed.at[stage]))

    @pl.when(warpgroup < WARPGROUPS)
    def computes() -> None:
        plgpu.set_max_registers(232, action="increase")
        over_items(functools.partial(_consume, plan, out_gmem, lse_gmem, refs))


@dataclasses.dataclass(frozen=True)
class _Refs:
    """Shared memory and barriers. ready: a stage is filled; free: all have read it; v_clean: both warpgroups have zeroed their rows."""

    q_smem: Any
    k_smem: Any
    v_smem: Any
    out_smem: Any
    lse_smem: Any
    q_ready: Any
    q_free: Any
    k_ready: Any
    v_ready: Any
    k_free: Any
    v_free: Any
    v_clean: Any


def _produce(
    plan: Plan,
    q_gmem: Any,
    k_gmem: Any,
    v_gmem: Any,
    table_gmem: Any,
    refs: _Refs,
    number: Any,
    item: Item,
    before: Any,
) -> None:
    """The warpgroup that copies: an item's queries, then its blocks of keys and values, each when its stage is free."""
    c, copied, parts = plan.config, plan.copied, 1 if plan.alternate else WARPGROUPS
    of_page = plan.page_size // copied
    _, q_stage = _divided(number, c.q_stages)

    @pl.when(number >= c.q_stages)
    def wait_for_queries() -> None:
        plgpu.barrier_wait(refs.q_free.at[q_stage])

    for part in range(parts):
        plgpu.copy_gmem_to_smem(
            q_gmem.at[item.sequence, item.head, pl.ds(item.block * plan.item_rows + part * plan.rows, plan.rows)],
            refs.q_smem.at[q_stage, part, pl.ds(0, plan.rows)],
            refs.q_ready.at[q_stage],
        )

    def pieces(i: Any) -> tuple[Any, ...]:
        """Where the slots of a block lie. Pages that no row sees are not looked at: one that is seen is copied again in their place."""
        found = []
        for piece in range(c.block // copied):
            slot = jnp.clip(i * c.block + piece * copied, item.first, item.last - 1)
            of_table, within = _divided(slot, plan.page_size)
            page = table_gmem[item.sequence, of_table]
            found.append((page * plan.kv_heads + item.head) * of_page + _divided(within, copied)[0])
        return tuple(found)

    def step(i: Any, here: tuple[Any, ...]) -> tuple[Any, ...]:
        following = pieces(i + 1)  # asked for before it is needed: it comes from far
        count = before + i - item.start
        _, stage = _divided(count, c.stages)
        for source, target, ready, free in (
            (k_gmem, refs.k_smem, refs.k_ready, refs.k_free),
            (v_gmem, refs.v_smem, refs.v_ready, refs.v_free),
        ):

            @pl.when(count >= c.stages)
            def wait(free: Any = free) -> None:
                plgpu.barrier_wait(free.at[stage])

            for piece, index in enumerate(here):
                plgpu.copy_gmem_to_smem(
                    source.at[index], target.at[stage, pl.ds(piece * copied, copied)], ready.at[stage]
                )
        return following

    @pl.when(item.start < item.end)
    def copy_blocks() -> None:
        lax.fori_loop(item.start, item.end, step, pieces(item.start))


def _consume(plan: Plan, out_gmem: Any, lse_gmem: Any, refs: _Refs, number: Any, item: Item, before: Any) -> None:
    """A warpgroup that computes: 64 rows of the softmax over an item's slots, or over every other block of them, as they come."""
    c, o, D = plan.config, plan.options, plan.head_dim
    warpgroup = lax.axis_index("warpgroup")
    row_layout = plgpu.Layout.WGMMA.reduce(1)
    shape_RP = (WARPGROUP_ROWS, c.block)
    to_log2 = math.log2(math.e)
    factor = o.scale * to_log2 if o.softcap is None else o.softcap * to_log2
    _, q_stage = _divided(number, c.q_stages)
    q_smem = refs.q_smem.at[q_stage, 0 if plan.alternate else warpgroup]
    row_end = _row_ends(plan, item, warpgroup)

    def full(value: float, shape: tuple[int, ...], layout: Any) -> jax.Array:
        return mosaic.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    def step(i: Any, carry: Any, *, edge: bool) -> Any:
        acc_RD, top_R, total_R = carry
        _, stage = _divided(before + i - item.start, c.stages)
        if edge:  # before the logits, while registers are free
            plgpu.barrier_wait(refs.v_ready.at[stage])
            _zero_unseen(plan, item, i, refs.v_smem.at[stage], refs.v_clean, warpgroup)
        plgpu.barrier_wait(refs.k_ready.at[stage])
        s_RP = mosaic.product(q_smem, mosaic.transposed(refs.k_smem.at[stage]))
        plgpu.barrier_arrive(refs.k_free.at[stage])
        if o.softcap is not None:
            s_RP = jnp.tanh(s_RP * (o.scale / o.softcap))
        if edge:
            slot_RP = mosaic.iota(shape_RP, 1, plgpu.Layout.WGMMA) + i * c.block
            seen = slot_RP < lax.broadcast_in_dim(row_end, shape_RP, [0])
            if o.window is not None:
                seen &= slot_RP >= lax.broadcast_in_dim(row_end - o.window, shape_RP, [0])
            s_RP = jnp.where(seen, s_RP, -jnp.inf)
        new_top_R = jnp.maximum(top_R, s_RP.max(axis=1) * factor)
        decay_R = jnp.exp2(top_R - new_top_R)
        p_RP = jnp.exp2(s_RP * factor - lax.broadcast_in_dim(new_top_R, shape_RP, [0]))
        total_R = total_R * decay_R + p_RP.sum(axis=1)
        acc_RD = acc_RD * lax.broadcast_in_dim(decay_R, acc_RD.shape, [0])
        p_RP = p_RP.astype(refs.v_smem.dtype)
        if not edge:
            plgpu.barrier_wait(refs.v_ready.at[stage])
        acc_RD = mosaic.product(p_RP, refs.v_smem.at[stage], onto=acc_RD)
        plgpu.barrier_arrive(refs.v_free.at[stage])
        return acc_RD, new_top_R, total_R

    def blocks(begin: Any, end: Any, carry: Any, *, edge: bool) -> Any:
        """The steps of this warpgroup among [begin, end)."""
        of_step = functools.partial(step, edge=edge)
        if not plan.alternate:
            return lax.fori_loop(begin, end, of_step, carry)
        _, ahead = _divided(before + begin - item.start + warpgroup, WARPGROUPS)
        own = begin + ahead
        count, _ = _divided(jnp.maximum(end - own, 0) + WARPGROUPS - 1, WARPGROUPS)
        return lax.fori_loop(0, count, lambda i, carry: of_step(own + WARPGROUPS * i, carry), carry)

    plgpu.barrier_wait(refs.q_ready.at[q_stage])
    carry = (
        full(0.0, (WARPGROUP_ROWS, D), plgpu.Layout.WGMMA),
        full(LOWEST, (WARPGROUP_ROWS,), row_layout),
        full(0.0, (WARPGROUP_ROWS,), row_layout),
    )
    inner_start, inner_end = item.start, jnp.clip(_divided(item.inner_last, c.block)[0], item.start, item.end)
    if o.window is not None:
        inner_start, _ = _divided(item.inner_first + c.block - 1, c.block)
        inner_start = jnp.clip(inner_start, item.start, inner_end)
        carry = blocks(item.start, inner_start, carry, edge=True)
    carry = blocks(inner_start, inner_end, carry, edge=False)
    acc_RD, top_R, total_R = blocks(inner_end, item.end, carry, edge=True)
    plgpu.barrier_arrive(refs.q_free.at[q_stage])
    total_R = jnp.where(row_end > 0, total_R, 0.0)  # blocks that are not masked were added to rows for no token
    _write(plan, item, acc_RD, top_R, total_R, out_gmem, lse_gmem, refs)


def _row_ends(plan: Plan, item: Item, warpgroup: Any) -> jax.Array:
    """The slot after the last that each of the warpgroup's rows sees; 0 for a row that stands for no token."""
    layout = plgpu.Layout.WGMMA.reduce(1)
    begin = item.block * plan.item_rows + (0 if plan.alternate else warpgroup * WARPGROUP_ROWS)
    row = mosaic.iota((WARPGROUP_ROWS,), 0, layout) + begin
    token = lax.div(row, jnp.full_like(row, plan.group))
    return jnp.where(token < item.new, jnp.maximum(item.at + token + 1, 0), 0)


def _zero_unseen(plan: Plan, item: Item, i: Any, v_smem: Any, clean: Any, warpgroup: Any) -> None:
    """Values in slots that no row sees become 0: they may be NaN, and 0 times NaN is NaN."""
    block, start = plan.config.block, i * plan.config.block
    pieces = [(row, column) for row in range(0, block, 64) for column in range(0, plan.head_dim, 64)]

    def zero(row: int, column: int) -> None:
        piece = v_smem.at[pl.ds(row, 64), pl.ds(column, 64)]
        slot = mosaic.iota((64, 64), 0, plgpu.Layout.WGMMA) + (start + row)
        values = mosaic.layout_cast(piece[...], plgpu.Layout.WGMMA)
        piece[...] = jnp.where((slot >= item.first) & (slot < item.last), values, jnp.zeros_like(values))

    @pl.when((start < item.first) | (start + block > item.last))
    def zero_pieces() -> None:
        for number, piece in enumerate(pieces):
            mine = True if plan.alternate else warpgroup == number % WARPGROUPS
            pl.when(mine)(functools.partial(zero, *piece))
        plgpu.commit_smem()
        if not plan.alternate:
            plgpu.barrier_arrive(clean)
            plgpu.barrier_wait(clean)


def _write(
    plan: Plan,
    item: Item,
    acc_RD: jax.Array,
    top_R: jax.Array,
    total_R: jax.Array,
    out_gmem: Any,
    lse_gmem: Any,
    refs: _Refs,
) -> None:
    """The warpgroup's rows of the result, some columns at a time; rows that saw nothing are 0."""
    warpgroup, rows = lax.axis_index("warpgroup"), plan.rows
    partial = item.split * WARPGROUPS + warpgroup if plan.alternate else item.split
    at = item.block * plan.item_rows + (0 if plan.alternate else warpgroup * rows)
    some_R = total_R > 0.0
    lse_R = jnp.where(some_R, top_R * math.log(2.0) + jnp.log(jnp.where(some_R, total_R, 1.0)), -jnp.inf)
    share_R = jnp.where(some_R, 1.0 / total_R, 0.0)
    for column in range(0, plan.head_dim, plan.columns):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        part = acc_RD[:, column : column + plan.columns]
        share = lax.broadcast_in_dim(share_R, part.shape, [0])
        refs.out_smem[warpgroup] = jnp.where(share > 0.0, part * share, 0.0).astype(refs.out_smem.dtype)
        if column == 0:
            refs.lse_smem[warpgroup] = lse_R
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(
            refs.out_smem.at[warpgroup, pl.ds(0, rows)],
            out_gmem.at[item.sequence, item.head, partial, pl.ds(at, rows), pl.ds(column, plan.columns)],
        )
    plgpu.copy_smem_to_gmem(
        refs.lse_smem.at[warpgroup, pl.ds(0, rows)], lse_gmem.at[item.sequence, item.head, partial, pl.ds(at, rows)]
    )
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
