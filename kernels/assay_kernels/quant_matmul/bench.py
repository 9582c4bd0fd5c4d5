"""What benchmarks/kernels.py runs of quant_matmul: a layer's products at the batch sizes of decoding, against the same product in bf16."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.benching import Bar, Tunable
from assay_kernels.quant_matmul import mosaic
from assay_kernels.quant_matmul.api import quant_matmul
from assay_kernels.quant_matmul.formats import STEP, Format, Kind, QuantizedWeights, quantize
from assay_kernels.quant_matmul.shapes import Options
from assay_kernels.target import current_target


@dataclasses.dataclass(frozen=True)
class Shape:
    """x (rows, K) in bf16 times weights (K, N) of so many bits."""

    rows: int
    k: int = 4096
    n: int = 14336
    bits: int = 4
    group: int | None = 128
    kind: Kind = "int"
    on: tuple[str, ...] = ("gpu",)

    @property
    def format(self) -> Format:
        """Of the weights."""
        return Format(self.bits, self.group, self.kind, (self.k, self.n))

    @property
    def flops(self) -> int:
        """0: memory counts."""
        return 0

    @property
    def bytes(self) -> int:
        """Values and scales, x and the result."""
        scales = 4 * self.n if self.group is None else 2 * self.n * self.k // self.group
        return self.k * self.n * self.bits // 8 + scales + 2 * self.rows * (self.k + self.n)

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(x, values, scales, the weights in bf16) as shapes."""
        return jax.eval_shape(self.arguments)

    def arguments(self) -> tuple[jax.Array, ...]:
        """The same, drawn."""
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (self.rows, self.k), jnp.bfloat16)
        w = jax.random.normal(keys[1], (self.k, self.n), jnp.bfloat16)
        weights = quantize(w, bits=self.bits, group=self.group, kind=self.kind)
        return x, weights.values, weights.scales, w


SHAPES: Mapping[str, Shape] = {
    "small": Shape(4, 512, 256, on=("cpu", "gpu")),
    "int4_1": Shape(1),
    "int4_16": Shape(16),
    "int4_32": Shape(32),
    "int4_64": Shape(64),
    "int4_down_16": Shape(16, 14336, 4096),
    "int4_square_16": Shape(16, 4096, 4096),
    "int4_70b_16": Shape(16, 8192, 28672),
    "int4_g64_16": Shape(16, group=64),
    "int8_1": Shape(1, bits=8),
    "int8_16": Shape(16, bits=8),
    "fp8_16": Shape(16, bits=8, kind="fp8"),
    "int8_channel_16": Shape(16, bits=8, group=None),
    "int4_channel_16": Shape(16, group=None),
    "fp8_channel_16": Shape(16, bits=8, group=None, kind="fp8"),
}
BARS: Sequence[Bar] = (
    *(Bar(f"int4_{name}", "mosaic", 3.3, "x", ("bf16",)) for name in ("1", "16", "down_16", "70b_16")),
    *(Bar(name, "mosaic", 1.8, "x", ("bf16",)) for name in ("int8_1", "int8_16", "fp8_16")),
    Bar("int8_channel_16", "xla", 1.8, "x", ("bf16",)),
)


def contenders(shape: Shape) -> dict[str, Callable[..., jax.Array]]:
    """Name -> (x, values, scales, w) -> the product."""
    form = shape.format

    def ours(impl: str, x: jax.Array, values: jax.Array, scales: jax.Array, w: jax.Array) -> jax.Array:
        return quant_matmul(x, QuantizedWeights(values, scales, form), impl=impl)

    def bf16(x: jax.Array, values: jax.Array, scales: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    kernel = shape.group is not None and current_target().is_hopper
    names = ["reference", "xla", *(["mosaic"] if kernel else [])]
    return {"bf16": bf16} | {name: functools.partial(ours, name) for name in names}


def _space(shape: Shape) -> list[mosaic.Config]:
    form = shape.format
    candidates = [mosaic.Config(stages, splits) for stages in (2, 4, 6, 8, 10) for splits in (1, 2, 3, 4, 6, 8)]
    return [
        c
        for c in candidates
        if mosaic.shared_bytes(shape.rows, form, c) <= mosaic.SHARED and c.splits <= shape.k // STEP
    ]


def _run(shape: Shape, config: mosaic.Config) -> Callable[..., Any]:
    return lambda x, values, scales, w: mosaic.run(x, values, scales, Options(shape.format), config)


TUNABLE: Mapping[str, Tunable] = {
    "mosaic": Tunable(lambda shape: mosaic.key(shape.rows, shape.format), mosaic.EXACT, _space, _run)
}
