"""What benchmarks/kernels.py runs of attention: the grid of FlashAttention-3's paper, what cuDNN does not do, and models' own shapes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels import compat
from assay_kernels.attention.api import attention
from assay_kernels.attention.shapes import Options
from assay_kernels.benching import Bar, Tunable

FORWARD, BOTH = "forward", "forward and backward"
GRID = (512, 1024, 2048, 4096, 8192, 16384)  # tokens, of 16,384 in all


@dataclasses.dataclass(frozen=True)
class Shape:
    """A call. documents: how many of equal length are packed into a row, 0 for no segments. direction: FORWARD or BOTH."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    direction: str
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    documents: int = 0
    dtype: str = "bfloat16"
    on: tuple[str, ...] = ("gpu",)

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key the mask lets through, of a head and an example; packed documents count as if unpacked."""
        rows = range(self.queries)
        most = lambda row: min(row + 1, self.keys, self.window or self.keys)
        return sum(map(most, rows)) if self.causal else self.queries * self.keys

    @property
    def flops(self) -> int:
        """Two products of each pair forward, five more backward, as the papers count."""
        products = 2 if self.direction == FORWARD else 7
        return 2 * products * self.batch * self.heads * self.head_dim * self.pairs

    @property
    def bytes(self) -> int:
        """q, k, v and the output once; backward all of them, the output's cotangent and the three gradients."""
        q, k = self.queries * self.heads, self.keys * self.kv_heads
        once = 2 * self.batch * self.head_dim * (2 * q + 2 * k)
        return once if self.direction == FORWARD else 3 * once

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(q, k, v) and perhaps the segments, as shapes."""
        q, k = (
            jax.ShapeDtypeStruct((self.batch, tokens, heads, self.head_dim), self.dtype)
            for tokens, heads in ((self.queries, self.heads), (self.keys, self.kv_heads))
        )
        ids = (jax.ShapeDtypeStruct((self.batch, self.queries), "int32"),) if self.documents else ()
        return q, k, k, *ids

    def arguments(self) -> tuple[jax.Array, ...]:
        """The same, drawn."""
        keys = jax.random.split(jax.random.key(0), 3)
        drawn = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, self.abstract(), strict=False)]
        if not self.documents:
            return tuple(drawn)
        ids = jnp.arange(self.queries, dtype=jnp.int32) * self.documents // self.queries
        return *drawn, jnp.broadcast_to(ids, (self.batch, self.queries))


def _grid(direction: str) -> dict[str, Shape]:
    short = "forward" if direction == FORWARD else "both"
    return {
        f"d128 causal {tokens} {short}": Shape(16384 // tokens, tokens, tokens, 16, 16, 128, direction)
        for tokens in GRID
    }


SHAPES: Mapping[str, Shape] = {
    **_grid(FORWARD),
    **_grid(BOTH),
    "d128 full 4096 forward": Shape(4, 4096, 4096, 16, 16, 128, FORWARD, causal=False),
    "d64 causal 4096 forward": Shape(4, 4096, 4096, 32, 32, 64, FORWARD),
    "d64 causal 4096 both": Shape(4, 4096, 4096, 32, 32, 64, BOTH),
    "d96 causal 4096 both": Shape(4, 4096, 4096, 16, 16, 96, BOTH),
    "d192 causal 4096 both": Shape(4, 4096, 4096, 10, 10, 192, BOTH),
    "soft-cap 4096 forward": Shape(4, 4096, 4096, 16, 16, 128, FORWARD, softcap=50.0),
    "soft-cap 4096 both": Shape(4, 4096, 4096, 16, 16, 128, BOTH, softcap=50.0),
    "segments 4096 forward": Shape(4, 4096, 4096, 16, 16, 128, FORWARD, documents=1),
    "packed 4096 both": Shape(4, 4096, 4096, 16, 16, 128, BOTH, documents=8),
    "window 8192 both": Shape(2, 8192, 8192, 32, 8, 128, BOTH, window=1024),
    "llama3_8b 8192 both": Shape(2, 8192, 8192, 32, 8, 128, BOTH),
    "gpt2_124m both": Shape(32, 1024, 1024, 12, 12, 64, BOTH),
    "small on the CPU": Shape(2, 256, 256, 4, 4, 64, BOTH, dtype="float32", on=("cpu",)),
}
WAYS = ("forward", "both")
BARS: Sequence[Bar] = (
    Bar("d128 causal 4096 forward", "mosaic", 565.0, "TFLOP/s"),  # 0.95 of cuDNN's 595 on an H100
    Bar("d128 causal 4096 forward", "mosaic", 0.95, "x", ("cudnn",)),
    Bar("d128 causal 4096 both", "mosaic", 443.0, "TFLOP/s"),  # 565 forward and 408 backward, together
    Bar("d128 causal 4096 both", "mosaic", 1.0, "x", ("cudnn",)),
    Bar("soft-cap 4096 forward", "mosaic", 567.0, "TFLOP/s"),
    Bar("segments 4096 forward", "mosaic", 567.0, "TFLOP/s"),
    *(Bar(f"d128 causal {n} {way}", "auto", 1.0, "x", ("cudnn", "mosaic")) for n in GRID for way in WAYS),
)


def contenders(shape: Shape) -> dict[str, Callable[..., Any]]:
    """auto, each implementation that takes the shape, and what jax takes by itself ("jax.nn")."""
    ways: dict[str, Callable[..., jax.Array]] = {"auto": _ours(shape, "auto")}
    if "gpu" in shape.on:
        ways["mosaic"] = _ours(shape, "mosaic")
        if compat.has_cudnn() and not shape.documents and shape.softcap is None:
            ways["cudnn"] = _ours(shape, "cudnn")
    if not shape.documents and shape.softcap is None and shape.queries <= 4096:
        window = None if shape.window is None else (shape.window - 1, 0)
        ways["jax.nn"] = lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, is_causal=shape.causal, local_window_size=window
        )
    return {name: way if shape.direction == FORWARD else _with_gradients(way) for name, way in ways.items()}


def torch_contenders(shape: Shape) -> dict[str, Callable[..., Any]]:
    """torch's scaled_dot_product_attention, whatever it takes."""
    if shape.documents or shape.softcap is not None or shape.window is not None:
        return {}
    from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]

    def forward(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=shape.causal, enable_gqa=shape.heads != shape.kv_heads
        )

    def both(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        forward(q, k, v).sum().backward()
        return q.grad, k.grad, v.grad

    return {"torch": forward if shape.direction == FORWARD else both}


def _ours(shape: Shape, impl: str) -> Callable[..., jax.Array]:
    def call(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None = None) -> jax.Array:
        options = {"causal": shape.causal, "window": shape.window, "softcap": shape.softcap}
        found: Any = attention(q, k, v, q_segment_ids=ids, impl=impl, **options)  # type: ignore[arg-type]
        out: jax.Array = found
        return out

    return call


def _with_gradients(way: Callable[..., jax.Array]) -> Callable[..., Any]:
    def call(q: jax.Array, k: jax.Array, v: jax.Array, *ids: jax.Array) -> Any:
        out, back = jax.vjp(lambda *x: way(*x, *ids), q, k, v)
        return out, back(out)  # a cotangent that is not the same everywhere

    return call


def _options(shape: Shape) -> Options:
    return Options(causal=shape.causal, window=shape.window, softcap=shape.softcap)


def _tuning_key(shape: Shape) -> Mapping[str, int | str]:
    from assay_kernels.attention import mosaic

    q, k, *_ = shape.abstract()
    return mosaic.tuning_key(q.shape, k.shape, bool(shape.documents), _options(shape))


def _space(shape: Shape) -> Sequence[Any]:
    """The rule's configuration, and others that fit shared memory."""
    from assay_kernels.attention import mosaic

    usual = mosaic.rule(shape.head_dim, bool(shape.documents) or shape.softcap is not None)
    forward = [(128, 2), (64, 2), (64, 4)] if shape.head_dim <= 128 else [(64, 2)]
    return [
        dataclasses.replace(usual, block_k=block, stages=stages, split=split)
        for block, stages in forward
        for split in ((False, True) if shape.head_dim <= 128 and shape.direction == BOTH else (usual.split,))
    ]


def _run(shape: Shape, config: Any) -> Callable[..., Any]:
    from assay_kernels.attention import mosaic

    def call(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None = None) -> jax.Array:
        return mosaic.configured_attention(q, k, v, ids, ids, 0, _options(shape), config).out

    return call if shape.direction == FORWARD else _with_gradients(call)


TUNABLE: Mapping[str, Tunable] = {"mosaic": Tunable(_tuning_key, ("head_dim",), _space, _run)}
