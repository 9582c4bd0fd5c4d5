"""quant_matmul on a Hopper GPU for scales of groups and few rows of x: packed weights by TMA, unpacked in registers, multiplied there.

The product is turned over: 64 output channels are the rows of a product on the tensor cores, whose left operand comes from registers, and
the rows of x are its columns, so that few of them waste little. Values are multiplied without their scales; each group's sum is scaled as
it is added up in fp32. A thread block takes 128 channels, 64 for each of two warpgroups, and steps of 256 k; one more warpgroup copies.
With few rows of x four warpgroups compute, two for the even steps and two for the odd: unpacking and multiplying take turns in each, and
with more of them neither waits. Their sums are added up in shared memory.

Letters in names of shapes: M rows of x, K, N as in the op, R the 64 channels of a warpgroup, C a chunk of k.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu

from assay_kernels import mosaic
from assay_kernels.quant_matmul.formats import STEP, WORDS, Format, unpacked_rows
from assay_kernels.quant_matmul.reference import xla
from assay_kernels.quant_matmul.shapes import Options
from assay_kernels.target import Target, current_target
from assay_kernels.tuning import tuned

EXACT = ("bits", "group")  # and the kind, which is text
HALVES, CHANNELS = 2, 64  # of a tile, for warpgroups of their own; output channels of each
TILE = HALVES * CHANNELS
FEW_ROWS = 32  # of x: with more, four warpgroups that compute have too few registers
MOST_ROWS = 64  # of x: above, a product is no longer bound by reading the weights
GROUPS = (64, 128, 256)
SHARED = 232448  # bytes of shared memory that a thread block may have
BUSY = 80  # multiprocessors that read as fast as all of them


@dataclasses.dataclass(frozen=True)
class Config:
    """stages: steps of 256 k in shared memory. splits: of K, whose results are added up afterwards, in order."""

    stages: int
    splits: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed while jax traces. rows: of x, a multiple of 8. ctas: thread blocks."""

    format: Format
    config: Config
    rows: int
    out_dtype: str
    ctas: int

    @property
    def turns(self) -> int:
        """Warpgroups for the same channels, which take steps in turn."""
        return 2 if self.rows <= FEW_ROWS else 1

    @property
    def warpgroups(self) -> int:
        """That compute."""
        return HALVES * self.turns

    @property
    def tiles(self) -> int:
        """Of 128 channels."""
        return self.format.shape[1] // TILE

    @property
    def steps(self) -> int:
        """Of 256 k."""
        return self.format.shape[0] // STEP

    @property
    def items(self) -> int:
        """Of work."""
        return self.tiles * self.config.splits


def refusal(x: jax.Array, values: jax.Array, scales: jax.Array, options: Options) -> str | None:
    """Why these arguments are none for the kernel, in words, or None."""
    form = options.format
    if form.group not in GROUPS:
        return f"{form}: takes groups of {GROUPS}"
    if x.dtype != jnp.bfloat16:
        return f"multiplies bf16 on the tensor cores, x is {x.dtype}"
    if options.out_dtype not in (None, "bfloat16", "float32"):
        return f"writes bf16 or fp32, not {options.out_dtype}"
    if not 0 < x.shape[0] <= MOST_ROWS:
        return f"x has {x.shape[0]} rows: takes 1 to {MOST_ROWS}, with which reading the weights is what takes time"
    if form.shape[0] % STEP or form.shape[1] % TILE:
        return f"weights {form.shape}: K must be a multiple of {STEP}, N of {TILE}"
    return None


def key(rows: int, form: Format) -> dict[str, int | str]:
    """What the best configuration depends on."""
    found: dict[str, int | str] = {"rows": rows, "K": form.shape[0], "N": form.shape[1], "bits": form.bits}
    return found | {"group": form.group or 0, "kind": form.kind}


def fits(rows: int, form: Format, config: Config) -> bool:
    """Whether a configuration has the shared memory for such a call, and an even number of stages, since warpgroups take turns."""
    return config.stages % 2 == 0 and shared_bytes(rows, form, config) <= SHARED


def rule(rows: int, form: Format, target: Target) -> Config:
    """As many stages as fit, at most 8, and even, since warpgroups take turns.

    K is divided only where the tiles leave so many multiprocessors idle that reading slows down.
    """
    tiles, steps = form.shape[1] // TILE, form.shape[0] // STEP
    busy = BUSY * target.cores // 132
    splits = 1 if tiles >= busy else max(1, min(steps // 4, -(-busy // tiles)))
    stages = next(n for n in (8, 6, 4, 2) if shared_bytes(rows, form, Config(n, splits)) <= SHARED)
    return Config(stages, splits)


def shared_bytes(rows: int, form: Format, config: Config) -> int:
    """Shared memory of a thread block: words, x and scales of each stage, the result, and 1 KiB for barriers."""
    padded = -(-rows // 8) * 8
    stage = TILE * STEP * form.bits // 8 + 2 * padded * STEP + 2 * TILE * max(1, STEP // (form.group or STEP))
    return config.stages * stage + 8 * TILE * padded + 1024


def temp_bound(rows: int, form: Format, config: Config) -> int:
    """Bytes of temporary memory that the op takes at most: x filled up, and results, in fp32 where they are added up."""
    padded = -(-rows // 8) * 8
    return padded * (2 * form.shape[0] + 4 * (config.splits + 1) * form.shape[1]) + (1 << 16)


def multiply(x: jax.Array, values: jax.Array, scales: jax.Array, options: Options) -> jax.Array:
    """As `reference`."""
    form = options.format
    rows = x.shape[0]
    config = tuned(
        "quant_matmul",
        "mosaic",
        key(rows, form),
        exact=EXACT,
        otherwise=rule(rows, form, current_target()),
        fits=lambda config: fits(rows, form, config),
    )
    return run(x, values, scales, options, config)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def run(x: jax.Array, values: jax.Array, scales: jax.Array, options: Options, config: Config) -> jax.Array:
    """`multiply` with a configuration."""
    rows = x.shape[0]
    if not fits(rows, options.format, config):
        raise ValueError(f"{config}: needs more shared memory than there is, or an odd number of stages alternates")
    out_dtype = options.out_dtype or x.dtype.name
    plan = Plan(options.format, config, -(-rows // 8) * 8, out_dtype, 1)
    plan = dataclasses.replace(plan, ctas=min(current_target().cores, plan.items))
    x_MK = jnp.pad(x, ((0, plan.rows - rows), (0, 0)))
    out_SMN = _kernel(plan)(x_MK, values, scales)
    out = out_SMN[0] if config.splits == 1 else jnp.sum(out_SMN, axis=0)
    return out[:rows].astype(out_dtype)


def _fwd(x: jax.Array, values: jax.Array, scales: jax.Array, options: Options, config: Config) -> tuple[Any, Any]:
    return run(x, values, scales, options, config), (x, values, scales)


def _bwd(options: Options, config: Config, saved: Any, g: jax.Array) -> tuple[Any, Any, Any]:
    """Of x: XLA's product with the weights the other way round; what trains has more rows than are few."""
    x, values, scales = saved
    (dx,) = jax.vjp(lambda x: xla(x, values, scales, options), x)[1](g)
    return dx, None, jnp.zeros_like(scales)


run.defvjp(_fwd, _bwd)


def _kernel(plan: Plan) -> Any:
    form, c = plan.format, plan.config
    blocks, groups = STEP // form.row, STEP // (form.group or STEP)
    out_dtype = jnp.float32 if c.splits > 1 else plan.out_dtype
    return mosaic.kernel(
        functools.partial(_body, plan),
        name="quant_matmul",
        out_type=jax.ShapeDtypeStruct((c.splits, plan.rows, form.shape[1]), out_dtype),
        grid=(plan.ctas,),
        grid_names=("cta",),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        scratch_types={
            "w_smem": plgpu.SMEM((c.stages, blocks, TILE, WORDS), jnp.int32),
            "x_smem": plgpu.SMEM(
                (c.stages, plan.rows, STEP), jnp.bfloat16, transforms=mosaic.swizzled(STEP, jnp.bfloat16)
            ),
            "s_smem": plgpu.SMEM((c.stages, groups, TILE), jnp.bfloat16),
            "sum_smem": plgpu.SMEM((HALVES, CHANNELS, plan.rows), jnp.float32),
            "out_smem": plgpu.SMEM((HALVES, plan.rows, CHANNELS), out_dtype),
            "ready": plgpu.Barrier(num_arrivals=3, num_barriers=c.stages),
            "free": plgpu.Barrier(num_arrivals=HALVES, num_barriers=c.stages),
            "given": plgpu.Barrier(num_barriers=HALVES),
            "taken": plgpu.Barrier(num_barriers=HALVES),
        },
    )


@dataclasses.dataclass(frozen=True)
class _Refs:
    """Shared memory and barriers. ready: a stage is filled; free: it has been read; given, taken: a sum for the other warpgroup."""

    w_smem: Any
    x_smem: Any
    s_smem: Any
    sum_smem: Any
    out_smem: Any
    ready: Any
    free: Any
    given: Any
    taken: Any


@dataclasses.dataclass(frozen=True)
class _Item:
    """An item of work, in scalars: the steps [start, end) of a tile. number: of the thread block's items; before: steps of those before."""

    number: Any
    tile: Any
    split: Any
    start: Any
    end: Any
    before: Any


def _body(plan: Plan, x_gmem: Any, w_gmem: Any, s_gmem: Any, out_gmem: Any, **scratch: Any) -> None:
    c, refs = plan.config, _Refs(**scratch)
    cta, warpgroup = lax.axis_index("cta"), lax.axis_index("warpgroup")
    each = -(-plan.steps // c.splits)
    items = lax.div(plan.items - cta + plan.ctas - 1, jnp.int32(plan.ctas))

    def over_items(work: Callable[[_Item], None]) -> Any:
        """How many steps there were."""

        def of_item(i: Any, before: Any) -> Any:
            number = cta + i * plan.ctas
            tile, split = lax.rem(number, jnp.int32(plan.tiles)), lax.div(number, jnp.int32(plan.tiles))
            start = jnp.minimum(split * each, plan.steps)
            end = jnp.minimum(start + each, plan.steps)
            work(_Item(i, tile, split, start, end, before))
            return before + end - start

        return lax.fori_loop(0, items, of_item, jnp.int32(0))

    @pl.when(warpgroup == plan.warpgroups)
    def copies() -> None:
        plgpu.set_max_registers(40, action="decrease")
        count = over_items(functools.partial(_produce, plan, x_gmem, w_gmem, s_gmem, refs))
        for stage in range(c.stages):
            pl.when(count > stage)(functools.partial(plgpu.barrier_wait, refs.free.at[stage]))

    @pl.when(warpgroup < plan.warpgroups)
    def computes() -> None:
        plgpu.set_max_registers(104 if plan.turns > 1 else 232, action="increase")
        half, turn = lax.rem(warpgroup, jnp.int32(HALVES)), lax.div(warpgroup, jnp.int32(HALVES))
        over_items(functools.partial(_consume, plan, out_gmem, refs, half, turn))
        plgpu.wait_smem_to_gmem(0)
        if plan.turns > 1:
            pl.when((turn == 1) & (items > 0))(lambda: plgpu.barrier_wait(refs.taken.at[half]))


def _produce(plan: Plan, x_gmem: Any, w_gmem: Any, s_gmem: Any, refs: _Refs, item: _Item) -> None:
    """The warpgroup that copies: words, x and scales of each step, when its stage is free."""
    form, stages = plan.format, plan.config.stages
    blocks, groups = STEP // form.row, STEP // (form.group or STEP)
    channels = pl.ds(item.tile * TILE, TILE)

    def step(i: Any, _: None) -> None:
        count = item.before + i - item.start
        stage = lax.rem(count, jnp.int32(stages))

        @pl.when(count >= stages)
        def wait() -> None:
            plgpu.barrier_wait(refs.free.at[stage])

        for source, target in (
            (w_gmem.at[pl.ds(i * blocks, blocks), channels], refs.w_smem),
            (x_gmem.at[:, pl.ds(i * STEP, STEP)], refs.x_smem),
            (s_gmem.at[pl.ds(i * groups, groups), channels], refs.s_smem),
        ):
            plgpu.copy_gmem_to_smem(source, target.at[stage], refs.ready.at[stage])

    lax.fori_loop(item.start, item.end, step, None)


def _consume(plan: Plan, out_gmem: Any, refs: _Refs, half: Any, turn: Any, item: _Item) -> None:
    """A warpgroup that computes: 64 channels of all steps, or of every other one."""
    own = item.start + lax.rem(item.before + turn, jnp.int32(plan.turns))
    count = lax.div(jnp.maximum(item.end - own, 0) + plan.turns - 1, jnp.int32(plan.turns))
    mine = pl.ds(half * CHANNELS, CHANNELS)

    def step(i: Any, acc_RM: jax.Array) -> jax.Array:
        stage = lax.rem(item.before + own + plan.turns * i - item.start, jnp.int32(plan.config.stages))
        plgpu.barrier_wait(refs.ready.at[stage])
        acc_RM = _step(plan, acc_RM, refs.w_smem.at[stage], refs.x_smem.at[stage], refs.s_smem.at[stage], mine)
        plgpu.barrier_arrive(refs.free.at[stage])
        return acc_RM

    zeros = jnp.zeros((CHANNELS, plan.rows), jnp.float32)
    acc_RM = lax.fori_loop(0, count, step, mosaic.layout_cast(zeros, plgpu.Layout.WGMMA))

    def write(acc_RM: jax.Array) -> None:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        _store_transposed(refs.out_smem, half, acc_RM)
        plgpu.commit_smem()
        channels = pl.ds(item.tile * TILE + half * CHANNELS, CHANNELS)
        plgpu.copy_smem_to_gmem(refs.out_smem.at[half], out_gmem.at[item.split, :, channels])

    if plan.turns == 1:
        write(acc_RM)
        return

    @pl.when(turn == 1)
    def give() -> None:
        pl.when(item.number > 0)(lambda: plgpu.barrier_wait(refs.taken.at[half]))
        refs.sum_smem[half] = acc_RM
        plgpu.commit_smem()
        plgpu.barrier_arrive(refs.given.at[half])

    @pl.when(turn == 0)
    def take() -> None:
        plgpu.barrier_wait(refs.given.at[half])
        other_RM = mosaic.layout_cast(refs.sum_smem[half], plgpu.Layout.WGMMA)
        plgpu.barrier_arrive(refs.taken.at[half])
        write(acc_RM + other_RM)


def _step(plan: Plan, acc_RM: jax.Array, w_smem: Any, x_smem: Any, s_smem: Any, mine: Any) -> jax.Array:
    """256 k more."""
    form = plan.format
    group = form.group or STEP
    chunk = min(form.row, group)
    for number in range(STEP // group):
        scale_R = mosaic.layout_cast(s_smem[number, mine], plgpu.Layout.WGMMA.reduce(1)).astype(jnp.float32)
        part_RM: jax.Array | None = None
        for k in range(number * group, (number + 1) * group, chunk):
            w_RC = _unpacked(form, w_smem[k // form.row, mine])
            w_RC = w_RC[:, k % form.row : k % form.row + chunk]
            x_CM = mosaic.transposed(x_smem.at[:, pl.ds(k, chunk)])
            part_RM = mosaic.product(w_RC, x_CM, onto=part_RM)
        assert part_RM is not None
        acc_RM += lax.broadcast_in_dim(scale_R, acc_RM.shape, [0]) * part_RM
    return acc_RM


def _store_transposed(out_smem: Any, half: Any, acc_RM: jax.Array) -> None:
    if mosaic.interpreting():
        out_smem[half] = acc_RM.T.astype(out_smem.dtype)
        return
    turned = mosaic.layout_cast(acc_RM.astype(out_smem.dtype), plgpu.Layout.WGMMA_TRANSPOSED)
    mosaic.transposed(out_smem.at[half])[...] = turned


def _unpacked(form: Format, words: jax.Array) -> jax.Array:
    """bf16 (64, row) of packed words (64, 16), as the left operand of a product."""
    if mosaic.interpreting():
        return unpacked_rows(words, form).astype(jnp.bfloat16)
    layout = plgpu.Layout.WGMMA_8BIT
    convert = plgpu.inline_mgpu(
        arg_types=(layout,),
        return_type=plgpu.ShapeDtypeStruct((CHANNELS, form.row), jnp.bfloat16, layout=plgpu.Layout.WGMMA),
    )(functools.partial(_unpack_registers, form))
    return convert(mosaic.layout_cast(words, layout))


# Each turns 32 bits, $1, into the bf16 of one pair of values, $0. The first of four bits: the value is the mantissa of a bf16 from 128 on.
# int8 likewise, its sign apart; an fp8 has the bits of a bf16 whose exponent is 120 less.
_INT4 = """{{ .reg .b32 s, m; shr.u32 s, $1, {shift}; lop3.b32 s, s, 0x000F000F, 0x43004300, 0xEA;
mov.b32 m, 0x43084308; sub.bf16x2 $0, s, m; }}"""
_INT8 = """{{ .reg .b32 s, a, b; prmt.b32 s, $1, 0x43, {bytes}; and.b32 a, s, 0xff7fff7f; and.b32 b, s, 0xff80ff80;
sub.bf16x2 $0, a, b; }}"""
_FP8 = """{{ .reg .b32 s, a, b, m; prmt.b32 s, $1, 0, {bytes}; and.b32 a, s, 0x7f007f00; shr.u32 a, a, 4;
lop3.b32 b, s, 0x80008000, a, 0xEA; mov.b32 m, 0x7b807b80; mul.bf16x2 $0, b, m; }}"""


def unpacking(form: Format, pair: int) -> str:
    """The instructions for a pair of a word."""
    if form.kind == "fp8":
        return _FP8.format(bytes=("0x1404", "0x3424")[pair])
    return _INT8.format(bytes=("0x4140", "0x4342")[pair]) if form.bits == 8 else _INT4.format(shift=4 * pair)


def _unpack_registers(form: Format, ctx: Any, words: Any) -> Any:
    """Of a thread: its words of rows r and r + 8, four each, into the pairs of k that the tensor cores take from it."""
    ir: Any = importlib.import_module("jaxlib.mlir.ir")
    llvm: Any = importlib.import_module("jaxlib.mlir.dialects.llvm")
    vector: Any = importlib.import_module("jaxlib.mlir.dialects.vector")
    i32, pair = ir.IntegerType.get_signless(32), ir.VectorType.get((2,), ir.BF16Type.get())
    pairs = 4 if form.bits == 4 else 2
    layout = mgpu.WGMMA_LAYOUT
    registers = np.empty(layout.registers_shape((CHANNELS, form.row)), dtype=object)
    flat_words = words.registers.reshape(2)  # rows r and r + 8
    by_pair = registers.reshape(form.row // 8, 2)
    for half in range(2):
        for t in range(4):
            word = vector.extract(flat_words[half], dynamic_position=[], static_position=[t])
            for p in range(pairs):
                code = unpacking(form, p)
                found = llvm.inline_asm(i32, [word], code, "=r,r")
                by_pair[pairs * t + p, half] = mgpu.utils.bitcast(found, pair)
    return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)
