"""grouped_matmul on Hopper: two persistent, warp-specialised kernels, one for x w (and dy w^T), one for x^T dy of each group.

In both a warpgroup keeps TMA copies in flight, and two others multiply from shared memory, 64 rows each, in fp32. Shapes, in names:
M rows, K width, N columns, G groups, S stages, W warpgroups that multiply, B = 64.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from assay_kernels import mosaic
from assay_kernels.grouped_matmul.configs import BLOCK, ROWS, Configs, Outer, Product, configured, cores
from assay_kernels.grouped_matmul.schedule import ALIGNMENT, by_size, place, row_tiles
from assay_kernels.grouped_matmul.shapes import Options, bounds

MULTIPLIERS = 2  # warpgroups that multiply in the kernel of x w, 64 rows each
COPIES = 2  # into one stage: of x, and of w or dy
COPIER_REGISTERS, MASKER_REGISTERS = 40, 88  # of a thread of the warpgroup that copies, without and with masks
Array = jax.Array


def grouped(x: Array, w: Array, group_sizes: Array, options: Options) -> Array:
    """What the reference returns."""
    starts, ends = bounds(group_sizes, x.shape[0])
    return _grouped(x, w, starts, ends, options, configured(x, w, options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _grouped(x: Array, w: Array, starts: Array, ends: Array, options: Options, configs: Configs) -> Array:
    return product(
        x, w, starts, ends, transpose_w=options.transpose_w, out_dtype=options.result(x), config=configs.forward
    )


def _forward(
    x: Array, w: Array, starts: Array, ends: Array, options: Options, configs: Configs
) -> tuple[Array, tuple[Array, ...]]:
    return _grouped(x, w, starts, ends, options, configs), (x, w, starts, ends)


def _backward(
    options: Options, configs: Configs, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, None, None]:
    x, w, starts, ends = saved
    dy = cotangent.astype(x.dtype)
    turned = not options.transpose_w
    dx = product(dy, w, starts, ends, transpose_w=turned, out_dtype=x.dtype, config=configs.towards_x)
    pair = (dy, x) if options.transpose_w else (x, dy)
    return dx, outer(*pair, starts, ends, config=configs.towards_w), None, None


_grouped.defvjp(_forward, _backward)


def product(
    x: Array, w: Array, starts: Array, ends: Array, *, transpose_w: bool, out_dtype: Any, config: Product
) -> Array:
    """x_i w_g, (M, N); 0 after the last group's rows."""
    rows, columns = x.shape[0], w.shape[1 if transpose_w else 2]
    _divides(config, config.columns, columns)
    x = _padded(x, ROWS)
    tiles = row_tiles(starts, ends, x.shape[0])
    swizzled = functools.partial(mosaic.swizzled, BLOCK)
    chunk = 128 // jnp.dtype(out_dtype).itemsize
    w_block = (config.columns, BLOCK) if transpose_w else (BLOCK, config.columns)
    w_transforms = mosaic.swizzled(w_block[1], w.dtype)
    call = mosaic.kernel(
        functools.partial(_product_kernel, transpose_w=transpose_w, config=config, grid=_grid(tiles, columns, config)),
        name=f"grouped_matmul_{'nk' if transpose_w else 'kn'}",
        out_type=jax.ShapeDtypeStruct((x.shape[0], columns), out_dtype),
        grid=(_grid(tiles, columns, config),),
        grid_names=("sm",),
        num_threads=MULTIPLIERS + 1,
        thread_name="wg",
        scratch_types={
            "x_SMK": plgpu.SMEM((config.stages, ROWS, BLOCK), x.dtype, transforms=swizzled(x.dtype)),
            "w_S": plgpu.SMEM((config.stages, *w_block), w.dtype, transforms=w_transforms),
            "whole_WBN": plgpu.SMEM(
                (MULTIPLIERS, BLOCK, chunk), out_dtype, transforms=mosaic.swizzled(chunk, out_dtype)
            ),
            "parts_WBN": plgpu.SMEM((MULTIPLIERS, BLOCK, chunk), out_dtype),
            "filled_S": plgpu.Barrier(num_arrivals=COPIES, num_barriers=config.stages),
            "free_S": plgpu.Barrier(num_arrivals=MULTIPLIERS, num_barriers=config.stages),
        },
    )
    out: Array = call(tiles, x, w)
    return out[:rows]


def _product_kernel(
    tiles_T4: Any,
    x_MK: Any,
    w_G: Any,
    out_MN: Any,
    *,
    x_SMK: Any,
    w_S: Any,
    whole_WBN: Any,
    parts_WBN: Any,
    filled_S: Any,
    free_S: Any,
    transpose_w: bool,
    config: Product,
    grid: int,
) -> None:
    stages = config.stages
    blocks, across = x_MK.shape[1] // BLOCK, out_MN.shape[1] // config.columns
    core, wg = lax.axis_index("sm"), lax.axis_index("wg")
    down, of_groups = (tiles_T4[tiles_T4.shape[0] - 1, field] for field in range(2))
    mine = _share(down * across, core, grid)

    def tile_of(i: Array) -> tuple[Array, Array, Array]:
        """(index of the row tile, first column, blocks of the width to multiply: none for rows that are of no group).

        It needs no memory: what the table says of a tile is awaited after its products.
        """
        row_tile, column = place(core + i * grid, down, across, config.together)
        steps = jnp.where(row_tile < of_groups, blocks, 0)
        return row_tile, column * config.columns, steps

    @pl.when(wg == MULTIPLIERS)
    def _copy() -> None:
        plgpu.set_max_registers(COPIER_REGISTERS, action="decrease")

        def tile(i: Array, step: Array) -> Array:
            row_tile, column, steps = tile_of(i)
            group, row = tiles_T4[row_tile, 0], pl.multiple_of(tiles_T4[row_tile, 1], ALIGNMENT)

            def copy(k: Array, step: Array) -> Array:
                slot = lax.rem(step, stages)
                _wait_until_free(free_S, step, stages)
                along, columns = pl.ds(k * BLOCK, BLOCK), pl.ds(column, config.columns)
                plgpu.copy_gmem_to_smem(x_MK.at[pl.ds(row, ROWS), along], x_SMK.at[slot], filled_S.at[slot])
                w_KN = w_G.at[group, columns, along] if transpose_w else w_G.at[group, along, columns]
                plgpu.copy_gmem_to_smem(w_KN, w_S.at[slot], filled_S.at[slot])
                return step + 1

            return lax.fori_loop(0, steps, copy, step)

        _wait_for_the_rest(free_S, lax.fori_loop(0, mine, tile, jnp.int32(0)), stages)

    @pl.when(wg < MULTIPLIERS)
    def _multiply() -> None:
        plgpu.set_max_registers(232, action="increase")
        own = pl.ds(wg * BLOCK, BLOCK)

        def tile(i: Array, step: Array) -> Array:
            row_tile, column, steps = tile_of(i)
            first = tiles_T4[row_tile, 1] + wg * BLOCK
            low = jnp.clip(tiles_T4[row_tile, 2] - first, 0, BLOCK)
            high = jnp.clip(tiles_T4[row_tile, 3] - first, 0, BLOCK)

            def multiply(acc: Any) -> Array:
                def block(k: Array, step: Array) -> Array:
                    slot = lax.rem(step, stages)
                    plgpu.barrier_wait(filled_S.at[slot])
                    w_KN = mosaic.transposed(w_S.at[slot]) if transpose_w else w_S.at[slot]
                    plgpu.wgmma(acc, x_SMK.at[slot, own], w_KN)
                    _free_the_one_before(free_S, k, step, stages)
                    return step + 1

                _free_the_last(free_S, lax.fori_loop(0, steps, block, step), steps, stages)
                return acc[...]

            result = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((BLOCK, config.columns))).astype(out_MN.dtype)
            _store(
                result, out_MN, pl.multiple_of(first, ALIGNMENT), column, low, high, whole_WBN.at[wg], parts_WBN.at[wg]
            )
            return step + steps

        lax.fori_loop(0, mine, tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0, wait_read_only=False)


def _store(
    result: Array, out_MN: Any, row: Array, column: Array, low: Array, high: Array, whole_BN: Any, parts_BN: Any
) -> None:
    """Write the rows low <= i < high of a warpgroup's result. All: swizzled, at once. Some: by copies of 1, 2, 4, … rows."""
    chunk = whole_BN.shape[1]
    for n in range(0, result.shape[1], chunk):
        part, columns = result[:, n : n + chunk], pl.ds(column + n, chunk)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        @pl.when((low == 0) & (high == BLOCK))
        def _whole(part: Array = part, columns: Any = columns) -> None:
            whole_BN[...] = part
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(whole_BN, out_MN.at[pl.ds(row, BLOCK), columns])

        @pl.when((low < high) & (high - low < BLOCK))
        def _parts(part: Array = part, columns: Any = columns) -> None:
            parts_BN[...] = part
            plgpu.commit_smem()
            done = low
            for size in (32, 16, 8, 4, 2, 1):
                here = (high - low) & size

                @pl.when(here != 0)
                def _copy(done: Array = done, size: int = size) -> None:
                    plgpu.copy_smem_to_gmem(parts_BN.at[pl.ds(done, size)], out_MN.at[pl.ds(row + done, size), columns])

                done = done + here


def _divides(config: Any, tile: int, size: int) -> None:
    """Raise ValueError where tiles do not divide a result evenly: a table of configurations may hold anything."""
    if size % tile:
        raise ValueError(f"{config}: tiles of {tile} do not divide {size}")


def outer(x: Array, dy: Array, starts: Array, ends: Array, *, config: Outer) -> Array:
    """(G, K, N): of each group the sum over its rows of x_i^T dy_i, in x's dtype."""
    groups, width, columns = starts.shape[0], x.shape[1], dy.shape[1]
    x, dy = _padded(x, BLOCK), _padded(dy, BLOCK)
    high = BLOCK * config.warpgroups
    _divides(config, config.columns, columns)
    _divides(config, high, width)
    tiles = groups * (width // high) * (columns // config.columns)
    chunk = 128 // x.dtype.itemsize
    swizzled = mosaic.swizzled(BLOCK, x.dtype)
    grid = min(cores(), tiles)
    call = mosaic.kernel(
        functools.partial(_outer_kernel, config=config, grid=grid),
        name="grouped_matmul_outer",
        out_type=jax.ShapeDtypeStruct((groups, width, columns), x.dtype),
        grid=(grid,),
        grid_names=("sm",),
        num_threads=config.warpgroups + 1,
        thread_name="wg",
        scratch_types={
            "x_SBK": plgpu.SMEM((config.stages, BLOCK, high), x.dtype, transforms=swizzled),
            "dy_SBN": plgpu.SMEM((config.stages, BLOCK, config.columns), x.dtype, transforms=swizzled),
            "out_W2BN": plgpu.SMEM((config.warpgroups, 2, BLOCK, chunk), x.dtype, transforms=swizzled),
            "filled_S": plgpu.Barrier(num_arrivals=COPIES, num_barriers=config.stages),
            "edges_S": plgpu.Barrier(num_arrivals=COPIES, num_barriers=config.stages),
            "free_S": plgpu.Barrier(num_arrivals=config.warpgroups, num_barriers=config.stages),
        },
    )
    out: Array = call(by_size(starts, ends), x, dy)
    return out


def _outer_kernel(
    groups_G3: Any,
    x_MK: Any,
    dy_MN: Any,
    out_GKN: Any,
    *,
    x_SBK: Any,
    dy_SBN: Any,
    out_W2BN: Any,
    filled_S: Any,
    edges_S: Any,
    free_S: Any,
    config: Outer,
    grid: int,
) -> None:
    groups, width, columns = out_GKN.shape
    rows, stages, multipliers = x_MK.shape[0], config.stages, config.warpgroups
    high = BLOCK * multipliers
    down, across = width // high, columns // config.columns
    core, wg = lax.axis_index("sm"), lax.axis_index("wg")
    mine = _share(jnp.int32(groups * down * across), core, grid)

    def tile_of(i: Array) -> tuple[Array, Array, Array]:
        """(place of the group in the order, first of x's columns, first of dy's)."""
        index = core + i * grid
        nth = index // (down * across)
        k, n = place(index - nth * (down * across), down, across, config.together)
        return nth, k * high, n * config.columns

    def steps_of(nth: Array) -> tuple[Array, Array, Array, Array]:
        """(first row of the group's first block, the group's first row, the row after its last, blocks)."""
        start, end = groups_G3[nth, 1], groups_G3[nth, 2]
        base = start // ALIGNMENT * ALIGNMENT
        return base, start, end, jnp.where(end > start, (end - base + BLOCK - 1) // BLOCK, 0)

    def rows_of(of: tuple[Array, Array, Array, Array], j: Array) -> tuple[Array, Array, Array, Array]:
        """(first row that is copied, the first and the one after the last to keep, counted from there, whether that is not all)."""
        base, start, end, _ = of
        nominal = base + j * BLOCK
        first = jnp.minimum(nominal, rows - BLOCK)
        low, after = jnp.maximum(start, nominal) - first, jnp.minimum(end - first, BLOCK)
        return first, low, after, (low > 0) | (after < BLOCK)

    @pl.when(wg == multipliers)
    def _copy() -> None:
        """Also zeroes what a block holds of other groups: a step later, while the others still multiply the blocks before."""
        plgpu.set_max_registers(MASKER_REGISTERS, action="decrease")

        def zero(step: Array, low: Array, after: Array) -> None:
            @pl.when((low > 0) | (after < BLOCK))
            def _() -> None:
                slot = lax.rem(step, stages)
                plgpu.barrier_wait(edges_S.at[slot])
                for ref, size in ((x_SBK, high), (dy_SBN, config.columns)):
                    for c in range(0, size, BLOCK):
                        _keep_rows(ref.at[slot, :, pl.ds(c, BLOCK)], low, after)
                plgpu.commit_smem()
                for _ in range(COPIES):
                    plgpu.barrier_arrive(filled_S.at[slot])

        def tile(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            nth, k, n = tile_of(i)
            of = steps_of(nth)

            def copy(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
                step, low_before, after_before = carry
                slot = lax.rem(step, stages)
                first, low, after, partial = rows_of(of, j)
                block = pl.ds(pl.multiple_of(first, ALIGNMENT), BLOCK)
                x_BK, dy_BN = x_MK.at[block, pl.ds(k, high)], dy_MN.at[block, pl.ds(n, config.columns)]
                _wait_until_free(free_S, step, stages)
                for barrier_S, wanted in ((filled_S, jnp.logical_not(partial)), (edges_S, partial)):

                    @pl.when(wanted)
                    def _(barrier_S: Any = barrier_S) -> None:
                        plgpu.copy_gmem_to_smem(x_BK, x_SBK.at[slot], barrier_S.at[slot])
                        plgpu.copy_gmem_to_smem(dy_BN, dy_SBN.at[slot], barrier_S.at[slot])

                zero(step - 1, low_before, after_before)
                return step + 1, low, after

            return lax.fori_loop(0, of[3], copy, carry)

        step, low, after = lax.fori_loop(0, mine, tile, (jnp.int32(0), jnp.int32(0), jnp.int32(BLOCK)))
        zero(step - 1, low, after)
        _wait_for_the_rest(free_S, step, stages)

    @pl.when(wg < multipliers)
    def _multiply() -> None:
        plgpu.set_max_registers(208, action="increase")
        own = pl.ds(wg * BLOCK, BLOCK)

        def tile(i: Array, step: Array) -> Array:
            nth, k, n = tile_of(i)
            of = steps_of(nth)
            group = groups_G3[nth, 0]

            def multiply(acc: Any) -> Array:
                def block(j: Array, step: Array) -> Array:
                    slot = lax.rem(step, stages)
                    plgpu.barrier_wait(filled_S.at[slot])
                    plgpu.wgmma(acc, mosaic.transposed(x_SBK.at[slot, :, own]), dy_SBN.at[slot])
                    _free_the_one_before(free_S, j, step, stages)
                    return step + 1

                _free_the_last(free_S, lax.fori_loop(0, of[3], block, step), of[3], stages)
                return acc[...]

            result = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((BLOCK, config.columns))).astype(out_GKN.dtype)
            for c in range(0, config.columns, out_W2BN.shape[3]):
                buffer = out_W2BN.at[wg, (c // out_W2BN.shape[3]) % 2]
                plgpu.wait_smem_to_gmem(1 if c else 0, wait_read_only=True)
                buffer[...] = result[:, c : c + out_W2BN.shape[3]]
                plgpu.commit_smem()
                at = out_GKN.at[group, pl.ds(k + wg * BLOCK, BLOCK), pl.ds(n + c, out_W2BN.shape[3])]
                plgpu.copy_smem_to_gmem(buffer, at)
            return step + of[3]

        lax.fori_loop(0, mine, tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0, wait_read_only=False)


def _keep_rows(ref_BB: Any, low: Array, after: Array) -> None:
    """Zero the rows of a 64 x 64 block outside low <= i < after; whatever they hold, NaN too."""
    row = mosaic.layout_cast(lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 0), plgpu.Layout.WGMMA)
    value = mosaic.layout_cast(ref_BB[...], plgpu.Layout.WGMMA)
    ref_BB[...] = jnp.where((row >= low) & (row < after), value, jnp.zeros_like(value))


def _wait_until_free(free_S: Any, step: Array, stages: int) -> None:
    """Until what was copied `stages` steps ago has been used; the first ones are free."""

    @pl.when(step >= stages)
    def _() -> None:
        plgpu.barrier_wait(free_S.at[lax.rem(step, stages)])


def _wait_for_the_rest(free_S: Any, steps: Array, stages: int) -> None:
    """Until all of the last copies have been used."""
    for i in range(1, stages + 1):

        @pl.when(steps >= i)
        def _(i: int = i) -> None:
            plgpu.barrier_wait(free_S.at[lax.rem(steps - i, stages)])


def _free_the_one_before(free_S: Any, nth: Array, step: Array, stages: int) -> None:
    """With one product left in flight: the block of the step before has been used."""
    plgpu.wgmma_wait(1)

    @pl.when(nth > 0)
    def _() -> None:
        plgpu.barrier_arrive(free_S.at[lax.rem(step - 1, stages)])


def _free_the_last(free_S: Any, end: Array, steps: Array, stages: int) -> None:
    """With none in flight, after a tile's last step."""
    plgpu.wgmma_wait(0)

    @pl.when(steps > 0)
    def _() -> None:
        plgpu.barrier_arrive(free_S.at[lax.rem(end - 1, stages)])


def _share(tiles: Array, core: Array, grid: int) -> Array:
    """How many of the tiles core, core + grid, … there are."""
    return (tiles - core + grid - 1) // grid


def _grid(tiles: Array, columns: int, config: Product) -> int:
    return min(cores(), (tiles.shape[0] - 1) * (columns // config.columns))


def _padded(x: Array, least: int) -> Array:
    """With rows of zeros up to a multiple of 8, and to `least`; x itself where it has as many, as it should: else it is copied."""
    rows = max(least, -(-x.shape[0] // ALIGNMENT) * ALIGNMENT)
    return x if rows == x.shape[0] else jnp.pad(x, ((0, rows - x.shape[0]), (0, 0)))
