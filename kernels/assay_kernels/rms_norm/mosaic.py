"""rms_norm on Hopper: its gradient, and residual and norm together, in as few passes over memory as there are arrays.

Each warpgroup works alone. It walks over the rows in tiles of a few rows, copies of the next tiles (TMA) running ahead in a ring of its
own in SMEM, and writes each result over the input that it replaces, from where TMA stores it. A tile is read twice from SMEM: for the
sums along its rows, and for the result. The sum over rows that w's gradient needs stays in registers, is added up by the warpgroups of a
thread block one after another, and then over the thread blocks by XLA: always in the same order.

Shapes: N rows in all, R rows of a tile, P warps across a row (4 where a tile is one row), L lines of a row, C elements of a line.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from assay_kernels import mosaic as dialect
from assay_kernels.rms_norm.reference import Options, reference
from assay_kernels.target import Target, current_target
from assay_kernels.tuning import tuned

SMEM = 227 * 1024
REDUCTION = 2048  # of SMEM, which sums over the warps of a warpgroup take
ELEMENTS = 2048  # of a tile of short rows, and of what is computed of a long one at once
REGISTERS = 64  # of a thread at most for w's gradient
DTYPES = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class Config:
    """warpgroups: of a thread block, of which each multiprocessor has one. stages: tiles of each warpgroup's ring."""

    warpgroups: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """R rows in SMEM and registers. Short rows: (R, [L,] C), a warp has whole rows; long ones: (L, P, C), one row over all four warps."""

    width: int

    @property
    def across(self) -> bool:
        """Whether a tile is one row."""
        return self.width > 512 and self.width % 256 == 0

    @property
    def line(self) -> int:
        """C: four elements of each lane of a warp, or two where lines of that length would not come out even."""
        return 128 if self.width % (512 if self.across else 128) == 0 and self.width > 128 else 64

    @property
    def rows(self) -> int:
        """R: a multiple of four where each warp has its own."""
        return 1 if self.across else max(4, 1 << int(math.log2(ELEMENTS / self.width)))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one row."""
        lines = self.width // self.line
        if self.across:
            return lines // 4, 4, self.line
        return (self.line,) if lines == 1 else (lines, self.line)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tile."""
        return self.row_shape if self.across else (self.rows, *self.row_shape)

    @property
    def layout(self) -> Any:
        """Warps along R or P, lanes along the last axis, a few neighbours in each lane."""
        middle = (1,) * (len(self.shape) - 2)
        first = (*middle, 4) if self.across else (4, *middle)
        tiling = plgpu.Tiling(((*first, self.line), (self.line // 32,)))
        return plgpu.Layout.TILED(tiling, (-3 if self.across else -len(self.shape) - 1,), (-2,), -1)

    @property
    def row_layout(self) -> Any:
        """Of one row: where warps have rows of their own, each has all of it."""
        if self.across:
            return self.layout
        rank = len(self.row_shape)
        tiling = plgpu.Tiling(((*(1,) * (rank - 1), self.line), (self.line // 32,)))
        return plgpu.Layout.TILED(tiling, (plgpu.Replicated(4),), (-2,), -1)

    @property
    def row_sum_layout(self) -> Any:
        """Of a number for each position on R or P."""
        return plgpu.Layout.TILED(plgpu.Tiling(((4,), (1,))), (-2,), (plgpu.Replicated(32),), -1)

    def at(self, ref: Any, index: Any) -> Any:
        """The index-th tile of an array in GMEM, whose first axis is that of all tiles together."""
        size = self.shape[0]
        return ref.at[pl.ds(index * size, size)]

    @property
    def parts(self) -> list[Any]:
        """Slices of the first axis, of equal size; a long row is computed in parts, since registers hold no more."""
        first = self.shape[0]
        most = max(1, ELEMENTS // math.prod(self.shape[1:])) if self.across else first
        size = max(n for n in range(1, most + 1) if first % n == 0)
        return [pl.ds(i, size) for i in range(0, first, size)]

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Of one of them."""
        return self.shape[0] // len(self.parts), *self.shape[1:]

    def to_all_rows(self, row: jax.Array) -> jax.Array:
        """The same row in each row of the tile."""
        return row if self.across else lax.broadcast_in_dim(row, self.shape, tuple(range(1, len(self.shape))))

    def to_all_columns(self, sums: jax.Array) -> jax.Array:
        """What `row_sums` gives, in each of the row's elements."""
        return sums if self.across else lax.broadcast_in_dim(sums, self.shape, (0,))

    def row_sums(self, values: Sequence[jax.Array], exchange: Any) -> list[jax.Array]:
        """Of each of `values`, sums over the parts, the sums along the rows: (R,), or a scalar where there is one row.

        exchange: SMEM for the sums of the warps, (len(values), 4). plgpu's own sum over warps would not do: all warpgroups of a thread
        block share its SMEM.
        """
        for axis in (2, 0) if self.across else range(len(self.shape) - 1, 0, -1):
            values = [jnp.sum(v, axis=axis) for v in values]
        if not self.across:
            return list(values)
        for i, sums in enumerate(values):
            exchange[i] = dialect.layout_cast(sums, self.row_sum_layout)
        plgpu.commit_smem()
        return [(exchange[i, 0] + exchange[i, 1]) + (exchange[i, 2] + exchange[i, 3]) for i in range(len(values))]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed while jax traces."""

    options: Options
    config: Config
    blocks: int


def supports(target: Target, x: jax.Array, w: jax.Array, residual: jax.Array | None, options: Options) -> str | None:
    """None, or why not."""
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    if x.dtype not in DTYPES or w.dtype != x.dtype:
        return f"x is {x.dtype} and w {w.dtype}: both must be one of {', '.join(DTYPES)}"
    width = x.shape[-1]
    if width % 64:
        return f"the width, {width}, is no multiple of 64"
    if width == 64 and (x.size // 64) % 8:
        return f"{x.size // 64} rows of width 64 are no multiple of 8"
    if not x.size:
        return f"x {x.shape} is empty"
    tile = Tile(width)
    if math.prod(tile.shape) > 128 * REGISTERS or _rule(tile, x.dtype.itemsize, residual is not None) is None:
        return f"rows of {width} x {x.dtype} do not fit into a multiprocessor"
    return None


def mosaic(
    x: jax.Array, w: jax.Array, residual: jax.Array | None, options: Options, config: Config | None = None
) -> tuple[jax.Array, ...]:
    """As `reference`. config: in place of the measured one or the rule's, for measuring."""
    width = x.shape[-1]
    if config is None:
        rule = _rule(Tile(width), x.dtype.itemsize, residual is not None)
        assert rule is not None
        shape: dict[str, int | str] = {"width": width, "dtype": x.dtype.name, "residual": int(residual is not None)}
        config = tuned("rms_norm", "mosaic", shape, exact=("width", "residual"), otherwise=rule)
    plan = Plan(options, config, current_target().cores)
    flat = x.reshape(-1, width)
    if residual is None:
        return (normalised(flat, w, plan).reshape(x.shape),)
    y, total = added(flat, residual.reshape(-1, width), w, plan)
    return y.reshape(x.shape), total.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def normalised(x: jax.Array, w: jax.Array, plan: Plan) -> jax.Array:
    """The norm alone: one kernel of XLA's in the forward pass, one of ours in the backward pass."""
    return reference(x, w, None, plan.options)[0]


def _normalised_fwd(x: jax.Array, w: jax.Array, plan: Plan) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return reference(x, w, None, plan.options)[0], (x, w)


def _normalised_bwd(plan: Plan, saved: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
    x, w = saved
    return backward(x, w, dy, None, plan)


normalised.defvjp(_normalised_fwd, _normalised_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def added(x: jax.Array, residual: jax.Array, w: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """(the norm of x + residual, x + residual)."""
    return forward(x, residual, w, plan)


def _added_fwd(x: jax.Array, residual: jax.Array, w: jax.Array, plan: Plan) -> tuple[Any, tuple[jax.Array, ...]]:
    y, total = forward(x, residual, w, plan)
    return (y, total), (total, w)


def _added_bwd(
    plan: Plan, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    total, w = saved
    d, dw = backward(total, w, *cotangents, plan)
    return d, d, dw


added.defvjp(_added_fwd, _added_bwd)


def forward(x_NW: jax.Array, residual_NW: jax.Array, w_W: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """(y, x + residual): four passes."""
    tile, dtype = Tile(x_NW.shape[1]), x_NW.dtype

    def compute(index: Any, slot: Sequence[Any], w: Callable[[Any], jax.Array], exchange: Any, carry: Any) -> Any:
        x_slot, residual_slot = slot
        squares = _zeros(tile)
        for part in tile.parts:
            rounded = (_read(x_slot.at[part], tile.layout) + _read(residual_slot.at[part], tile.layout)).astype(dtype)
            x_slot.at[part][...] = rounded
            squares = squares + jnp.square(rounded.astype(jnp.float32))
        (squares,) = tile.row_sums([squares], exchange)
        factor = tile.to_all_columns(lax.rsqrt(squares * (1.0 / tile.width) + plan.options.epsilon))
        for part in tile.parts:
            residual_slot.at[part][...] = (_read(x_slot.at[part], tile.layout) * factor * w(part)).astype(dtype)
        return carry

    total, y = _over_tiles("rms_norm_forward", compute, (x_NW, residual_NW), w_W, plan, stored=(0, 1), summed=False)
    return y, total


def backward(
    x_NW: jax.Array, w_W: jax.Array, dy_NW: jax.Array, dtotal_NW: jax.Array | None, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """(the gradient of x, that of w): three passes, four with dtotal, which is added to the first."""
    rows, tile = x_NW.shape[0], Tile(x_NW.shape[1])
    mean = 1.0 / tile.width

    def compute(index: Any, slot: Sequence[Any], w: Callable[[Any], jax.Array], exchange: Any, dw: Any) -> Any:
        x_slot, dy_slot, *dtotal_slot = slot
        squares, along = _zeros(tile), _zeros(tile)
        for part in tile.parts:
            x = _read(x_slot.at[part], tile.layout)
            squares, along = squares + x * x, along + x * (_read(dy_slot.at[part], tile.layout) * w(part))
        squares, along = tile.row_sums([squares, along], exchange)
        factor = lax.rsqrt(squares * mean + plan.options.epsilon)
        along = tile.to_all_columns(along * factor * mean)
        if rows % tile.rows:  # beyond the last row TMA reads zeros; with epsilon = 0 their factor is infinite
            row = index * tile.rows + dialect.iota((tile.rows,), 0, tile.row_sum_layout)
            factor = jnp.where(row < rows, factor, 0.0)
        factor = tile.to_all_columns(factor)
        added = []
        for part, so_far in zip(tile.parts, dw, strict=True):
            unit, dy = _read(x_slot.at[part], tile.layout) * factor, _read(dy_slot.at[part], tile.layout)
            dx = (dy * w(part) - unit * along) * factor
            if dtotal_slot:
                dx = dx + _read(dtotal_slot[0].at[part], tile.layout)
            dy_slot.at[part][...] = dx.astype(x_NW.dtype)
            added.append(so_far + dy * unit)
        return tuple(added)

    inputs = (x_NW, dy_NW) if dtotal_NW is None else (x_NW, dy_NW, dtotal_NW)
    dx, dw = _over_tiles("rms_norm_backward", compute, inputs, w_W, plan, stored=(1,), summed=True)
    return dx, dw.astype(w_W.dtype)


def _over_tiles(
    name: str,
    compute: Callable[..., Any],
    inputs_NW: Sequence[jax.Array],
    w_W: jax.Array,
    plan: Plan,
    *,
    stored: Sequence[int],
    summed: bool,
) -> list[jax.Array]:
    """What `compute` left of each tile in the slots of the inputs `stored`, and the sum over rows of what it carried, if `summed`.

    compute: (index of the tile, a slot of SMEM for each input, a function that reads a part of w, SMEM for `row_sums`, carry) -> carry, an
    array for each of the tile's parts.
    """
    (rows, width), dtype = inputs_NW[0].shape, inputs_NW[0].dtype
    tile, groups, stages, count = Tile(width), plan.config.warpgroups, plan.config.stages, len(inputs_NW)
    tiles = -(-rows // tile.rows)
    blocks = min(plan.blocks, -(-tiles // groups))
    views = [dialect.padded(x, 0, tile.rows).reshape(-1, *tile.shape[1:]) for x in inputs_NW]

    def kernel(*refs: Any, w_smem: Any, exchange: Any, full: Any, w_full: Any, turns: Any) -> None:
        from_gmem, w_gmem, to_gmem, sum_gmem = refs[:count], refs[count], refs[count + 1 :], refs[-1]
        group, block = lax.axis_index("group"), lax.axis_index("block")

        def walk(*rings: Any) -> Any:
            first, step = block * groups + group, blocks * groups
            mine = lax.div(tiles - first + step - 1, step)

            def fetch(i: Any) -> None:
                slot = lax.rem(i, stages)
                for source, ring in zip(from_gmem, rings, strict=True):
                    plgpu.copy_gmem_to_smem(
                        tile.at(source, first + i * step), ring.at[group, slot], full.at[group * stages + slot]
                    )

            @pl.when(group == 0)
            def _() -> None:
                plgpu.copy_gmem_to_smem(w_gmem, w_smem, w_full)

            for i in range(stages):
                pl.when(i < mine)(functools.partial(fetch, jnp.int32(i)))
            plgpu.barrier_wait(w_full)
            w = lambda part: tile.to_all_rows(_read(w_smem.at[part] if tile.across else w_smem, tile.row_layout))

            def one(i: Any, carry: Any) -> Any:
                slot = lax.rem(i, stages)
                plgpu.barrier_wait(full.at[group * stages + slot])
                slots = [ring.at[group, slot] for ring in rings]
                carry = compute(first + i * step, slots, w, exchange.at[group], carry)
                plgpu.commit_smem()
                for number, target in zip(stored, to_gmem, strict=False):
                    plgpu.copy_smem_to_gmem(slots[number], tile.at(target, first + i * step), commit_group=False)
                plgpu.commit_smem_to_gmem_group()
                # TMA has read the slot before this one, which is filled again; this one's stores may still run.
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                again = i - 1 + stages
                pl.when((i > 0) & (again < mine))(functools.partial(fetch, again))
                return carry

            start = tuple(_zeros(tile) for _ in tile.parts) if summed else None
            carry = lax.fori_loop(0, mine, one, start)
            plgpu.wait_smem_to_gmem(0)
            return carry

        def add_up(sum_smem: Any, carry: Any) -> None:
            """The warpgroups one after another."""
            for i in range(groups):

                @pl.when(group == i)
                def _(i: int = i) -> None:
                    if i:
                        plgpu.barrier_wait(turns.at[i - 1])
                    for part, total in zip(tile.parts, carry, strict=True):
                        to = sum_smem.at[part] if tile.across else sum_smem
                        of_rows = total if tile.across else jnp.sum(total, axis=0)
                        to[...] = dialect.layout_cast(to[...], tile.row_layout) + of_rows if i else of_rows
                    if i < groups - 1:
                        plgpu.barrier_arrive(turns.at[i])
                        return
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(sum_smem, sum_gmem.at[block])
                    plgpu.wait_smem_to_gmem(0)

        ring = plgpu.SMEM((groups, stages, *tile.shape), dtype)
        carry = pl.run_scoped(walk, *[ring] * count, collective_axes="group")
        if summed:
            sums = plgpu.SMEM(tile.row_shape, jnp.float32)
            pl.run_scoped(functools.partial(add_up, carry=carry), sums, collective_axes="group")

    out_type = [jax.ShapeDtypeStruct(views[0].shape, dtype) for _ in stored]
    out_type.append(jax.ShapeDtypeStruct((blocks, *tile.row_shape), jnp.float32))
    found = dialect.kernel(
        kernel,
        name=name,
        out_type=tuple(out_type if summed else out_type[:-1]),
        grid=(blocks,),
        grid_names=("block",),
        num_threads=groups,
        thread_name="group",
        scratch_types={
            "w_smem": plgpu.SMEM(tile.row_shape, dtype),
            "exchange": plgpu.SMEM((groups, 2, 4), jnp.float32),
            "full": plgpu.Barrier(num_arrivals=count, num_barriers=groups * stages),
            "w_full": plgpu.Barrier(),
            "turns": plgpu.Barrier(num_barriers=max(1, groups - 1)),
        },
        approx_math=True,
        reduction_scratch_bytes=REDUCTION,
    )(*views, w_W.reshape(tile.row_shape))
    arrays = [y.reshape(-1, width)[:rows] for y in found[: len(stored)]]
    return [*arrays, jnp.sum(found[-1].reshape(blocks, width), axis=0)] if summed else arrays


def _read(ref: Any, layout: Any) -> jax.Array:
    """In fp32."""
    found: jax.Array = dialect.layout_cast(ref[...], layout).astype(jnp.float32)
    return found


def _zeros(tile: Tile) -> jax.Array:
    """Of a part of a tile."""
    return dialect.layout_cast(jnp.zeros(tile.part_shape, jnp.float32), tile.layout)


def temp_bound(width: int, cores: int) -> int:
    """Bytes of temporary memory that a gradient takes at most: each thread block's part of w's gradient in fp32."""
    return 4 * width * cores + (1 << 20)


def feasible(config: Config, tile: Tile, itemsize: int, residual: bool) -> bool:
    """Whether the rings fit into SMEM, and what a thread keeps of w's gradient into its registers (128 for each of 512 threads)."""
    size, inputs = math.prod(tile.shape), 3 if residual else 2
    ring = config.warpgroups * config.stages * inputs * size * itemsize
    most = 40 if config.warpgroups > 2 else REGISTERS
    return ring + itemsize * tile.width + REDUCTION + 2048 <= SMEM and size <= 128 * most


def _rule(tile: Tile, itemsize: int, residual: bool) -> Config | None:
    """As many warpgroups as there can be, of up to four, then stages, from two to four; None where nothing fits."""
    every = [Config(groups, stages) for groups in (4, 2, 1) for stages in (4, 3, 2)]
    return next((c for c in every if feasible(c, tile, itemsize, residual)), None)
