"""What benchmarks/kernels.py runs of paged_attention: decoding with the shapes of real models, and prefill behind a prefix."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay_kernels.benching import Bar, Tunable
from assay_kernels.paged_attention import mosaic
from assay_kernels.paged_attention.api import paged_attention
from assay_kernels.paged_attention.shapes import Options
from assay_kernels.target import current_target


@dataclasses.dataclass(frozen=True)
class Shape:
    """B rows of up to `context` cached tokens, the last `tokens` of them new. ragged: lengths from a quarter of it to all, else all."""

    rows: int
    context: int
    tokens: int = 1
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 64
    ragged: bool = False
    window: int | None = None
    softcap: float | None = None
    on: tuple[str, ...] = ("gpu",)

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Of the rows."""
        least = self.context // 4 if self.ragged else self.context
        return np.linspace(least, self.context, self.rows).astype(np.int32)

    @property
    def flops(self) -> int:
        """Of the products; 0 while decoding, where memory counts."""
        if self.tokens == 1:
            return 0
        seen = self.lengths.astype(np.int64) * self.tokens - self.tokens * (self.tokens - 1) // 2
        return int(4 * self.heads * self.head_dim * np.sum(seen))

    @property
    def bytes(self) -> int:
        """Keys and values that are seen, queries and results, of two bytes each."""
        reach = self.context if self.window is None else self.window + self.tokens - 1
        slots = int(np.sum(np.minimum(self.lengths, reach).astype(np.int64)))
        return 4 * self.head_dim * (slots * self.kv_heads + self.rows * self.tokens * self.heads)

    @property
    def table(self) -> tuple[int, int]:
        """Rows and columns of the table of pages."""
        return self.rows, -(-self.context // self.page_size)

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(q, k_pages, v_pages, page_table, lengths) as shapes."""
        pages = self.rows * self.table[1], self.kv_heads, self.page_size, self.head_dim
        q = (self.rows, self.tokens, self.heads, self.head_dim)
        floats = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (q, pages, pages)]
        return *floats, *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in (self.table, (self.rows,)))

    def arguments(self) -> tuple[jax.Array, ...]:
        """The same, drawn; a row's pages lie anywhere."""
        keys = jax.random.split(jax.random.key(0), 4)
        q, k, v, *_ = self.abstract()
        drawn = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys[:3], (q, k, v), strict=True)]
        table = jax.random.permutation(keys[3], self.rows * self.table[1]).reshape(self.table).astype(jnp.int32)
        return *drawn, table, jnp.asarray(self.lengths)


SHAPES: Mapping[str, Shape] = {
    "small": Shape(4, 512, heads=8, kv_heads=2, head_dim=64, page_size=16, on=("cpu", "gpu")),
    "llama3_8b_4k": Shape(32, 4096),
    "llama3_8b_8k": Shape(32, 8192),
    "llama3_8b_8k_page16": Shape(32, 8192, page_size=16),
    "llama3_8b_ragged": Shape(64, 8192, ragged=True),
    "llama3_70b_8k": Shape(16, 8192, heads=64),
    "one_row_128k": Shape(1, 131072),
    "gpt_oss_window": Shape(128, 8192, heads=64, head_dim=64, window=128),
    "head64_4k": Shape(64, 4096, heads=64, head_dim=64),
    "gemma2_9b_4k": Shape(32, 4096, heads=16, head_dim=256, softcap=50.0),
    "verify_4_tokens": Shape(32, 8192, tokens=4),
    "prefill_1k": Shape(4, 8192, tokens=1024),
    "prefill_64": Shape(4, 8192, tokens=1024, heads=64, head_dim=64),
    "prefill_256": Shape(4, 8192, tokens=1024, heads=16, head_dim=256, softcap=50.0),
}
_RIVALS = ("xla", "cudnn")
BARS: Sequence[Bar] = (
    Bar("llama3_8b_4k", "mosaic", 3.65, "TB/s"),
    Bar("llama3_8b_8k", "mosaic", 3.65, "TB/s"),
    Bar("llama3_8b_8k_page16", "mosaic", 3.65, "TB/s"),
    Bar("head64_4k", "mosaic", 3.65, "TB/s"),
    Bar("gemma2_9b_4k", "mosaic", 3.65, "TB/s"),
    Bar("llama3_8b_8k", "mosaic", 1.0, "x", _RIVALS),
)


def contenders(shape: Shape) -> dict[str, Callable[..., jax.Array]]:
    """Name -> (q, k_pages, v_pages, page_table, lengths) -> the result."""
    options = {"window": shape.window, "softcap": shape.softcap}
    found: dict[str, Callable[..., jax.Array]] = {
        name: functools.partial(paged_attention, impl=name, **options) for name in ("reference",)
    }
    if shape.softcap is None:
        found["xla"] = functools.partial(_gathered, shape)
    if current_target().is_hopper:
        found["mosaic"] = functools.partial(paged_attention, impl="mosaic", **options)
        if shape.tokens == 1 and shape.softcap is None and shape.window is None:
            found["cudnn"] = _cudnn
    return found


def _gathered(
    shape: Shape, q: jax.Array, k_pages: jax.Array, v_pages: jax.Array, page_table: jax.Array, lengths: jax.Array
) -> jax.Array:
    """As one writes it without a kernel: gather a row's pages, then jax's attention with a mask."""
    k, v = (
        jnp.moveaxis(x[page_table], 2, 3).reshape(shape.rows, -1, shape.kv_heads, shape.head_dim)
        for x in (k_pages, v_pages)
    )
    slot = jnp.arange(k.shape[1])
    at = lengths[:, None] - shape.tokens + jnp.arange(shape.tokens)
    mask = slot <= at[:, None, :, None]
    if shape.window is not None:
        mask &= slot > at[:, None, :, None] - shape.window
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def _cudnn(
    q: jax.Array, k_pages: jax.Array, v_pages: jax.Array, page_table: jax.Array, lengths: jax.Array
) -> jax.Array:
    """cuDNN's, by a function of jax that is not public."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType
    from jax._src.cudnn.fused_attention_stablehlo import paged_attention as theirs

    table = page_table[:, None, :, None]
    out: jax.Array = theirs(
        jnp.swapaxes(q, 1, 2),
        k_pages,
        v_pages,
        jnp.ones_like(lengths),
        lengths,
        table,
        table,
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING,
        qkv_layout="BNTH",
    )
    return jnp.swapaxes(out, 1, 2)


def _space(shape: Shape) -> list[mosaic.Config]:
    rows = shape.tokens * shape.heads // shape.kv_heads
    found = mosaic.rule(rows, shape.rows * shape.kv_heads, shape.context, shape.head_dim, current_target())
    splits = sorted({1, 2, 3, 4, 6, 8, 12, 16, found.splits})
    sizes = [(64, 2), (64, 4), (128, 2), (128, 4)]
    candidates = [mosaic.Config(block, stages, s, q) for block, stages in sizes for s in splits for q in (1, 2)]
    return [c for c in candidates if mosaic.fits(rows, shape.head_dim, shape.page_size, c)]


def _run(shape: Shape, config: mosaic.Config) -> Callable[..., jax.Array]:
    options = Options(shape.head_dim**-0.5, shape.window, shape.softcap)

    def run(q: Any, k_pages: Any, v_pages: Any, page_table: Any, lengths: Any) -> jax.Array:
        return mosaic.run(q, k_pages, v_pages, page_table, lengths, None, options, config).out

    return run


def _key(shape: Shape) -> Mapping[str, int | str]:
    q, k_pages, _, table, _ = shape.abstract()
    return mosaic.key(q, k_pages, table, shape.window)


TUNABLE: Mapping[str, Tunable] = {"mosaic": Tunable(_key, mosaic.EXACT, _space, _run)}
