"""Block sizes of grouped_matmul's Mosaic kernels, and which calls those can do. Imports no Pallas."""

import dataclasses

import jax
import jax.numpy as jnp

from assay_kernels.grouped_matmul.shapes import Options
from assay_kernels.target import Target, current_target
from assay_kernels.tuning import tuned

BLOCK = 64  # rows of a warpgroup's wgmma, and elements of a row in one 128-byte swizzle of 2-byte numbers
ROWS = 128  # of x in a tile of the product
DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float16"))
SHARED_MEMORY = 232448 - 2048  # of a block on Hopper, without what barriers and the compiler take
EXACT = ("width", "columns")


@dataclasses.dataclass(frozen=True)
class Product:
    """Of x w. columns: of w in a tile, beside 128 rows of x. stages: blocks of 64 of the width in flight. together: row tiles that share
    w's columns in the L2 cache: so many are computed before the next columns are.
    """

    columns: int
    stages: int
    together: int


@dataclasses.dataclass(frozen=True)
class Outer:
    """Of x^T dy. columns: of dy in a tile. warpgroups: each computes 64 of x's columns. stages: blocks of 64 rows in flight.
    together: tiles along x's columns that share dy's in the L2 cache.
    """

    columns: int
    warpgroups: int
    stages: int
    together: int

    def __post_init__(self) -> None:
        """Raise ValueError for fewer than 3 stages: a block to be masked waits for the next copy, and that for a block that is used."""
        if self.stages < 3:
            raise ValueError(f"stages = {self.stages}: must be at least 3")


@dataclasses.dataclass(frozen=True)
class Configs:
    """Of the three products of a training step."""

    forward: Product
    towards_x: Product
    towards_w: Outer


def refused(target: Target, x: jax.Array, w: jax.Array, group_sizes: jax.Array, options: Options) -> str | None:
    """Why the Mosaic kernels cannot do such a call; None where they can."""
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; wgmma and fp32 sums are for bfloat16 and float16"
    if options.result(x) not in (x.dtype, jnp.float32):
        return f"out_dtype = {options.result(x)}: must be {x.dtype} or float32"
    if not x.shape[0]:
        return "x has no rows"
    width, columns = x.shape[1], options.columns(w)
    if not width or not columns or width % BLOCK or columns % BLOCK:
        return f"K = {width} and N = {columns} must be multiples of {BLOCK}, the columns of one swizzled TMA copy"
    return None


def configured(x: jax.Array, w: jax.Array, options: Options) -> Configs:
    """The measured configurations of the nearest shape, or the rules'."""
    rows, width, groups, columns = *x.shape, w.shape[0], options.columns(w)

    def product(name: str, k: int, n: int, transposed: bool) -> Product:
        key = {"rows": rows, "groups": groups, "width": k, "columns": n, "w": "n,k" if transposed else "k,n"}
        return tuned("grouped_matmul", name, key, exact=EXACT, otherwise=product_rule(n))

    a, b = (columns, width) if options.transpose_w else (width, columns)
    key = {"rows": rows, "groups": groups, "width": a, "columns": b}
    return Configs(
        product("mosaic", width, columns, options.transpose_w),
        product("mosaic", columns, width, not options.transpose_w),
        tuned("grouped_matmul", "mosaic_outer", key, exact=EXACT, otherwise=outer_rule(a, b)),
    )


def product_rule(columns: int) -> Product:
    """The widest tile that divides the columns, and as many stages as shared memory holds beside the result's buffers.

    16 row tiles of 128 beside 8 of 256 columns are the 132 tiles that run at once with the fewest bytes: as many of x as of w.
    """
    wide = widest(columns)
    return Product(wide, _stages(ROWS + wide, 2 * 2 * BLOCK * 128), together=16)


def outer_rule(a: int, b: int) -> Outer:
    """The same for (a, b) gradients; a tile that two warpgroups share where their 128 divides a."""
    wide, warpgroups = widest(b), 2 if a % (2 * BLOCK) == 0 else 1
    return Outer(wide, warpgroups, _stages(warpgroups * BLOCK + wide, warpgroups * 2 * BLOCK * 128), together=16)


def widest(columns: int) -> int:
    """The widest tile, of at most 256, that divides so many columns evenly."""
    return next(n for n in (256, 192, 128, 64) if columns % n == 0)


def cores() -> int:
    """Streaming multiprocessors of the target: a persistent kernel has a block on each."""
    return current_target().cores


def _stages(rows: int, buffers: int) -> int:
    """How many blocks of `rows` rows of 128 bytes fit into shared memory beside `buffers` bytes; at most 6."""
    return min(6, (SHARED_MEMORY - buffers) // (rows * 128))


def temp_bound(rows: int, width: int, columns: int, groups: int, itemsize: int) -> int:
    """Bytes of temporary memory of one product at most: tables of the tiles, and a copy of the rows where they are no multiple of 8."""
    tables = 16 * (rows // ROWS + 4 * groups + 4) * (groups + 8)
    copies = itemsize * (rows + ROWS) * (width + columns) if rows % 8 or rows < ROWS else 0
    return tables + copies + (1 << 20)
