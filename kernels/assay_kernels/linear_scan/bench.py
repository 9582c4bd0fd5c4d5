"""What benchmarks/kernels.py runs of linear_scan: values, and values with gradients, of real models' mixers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.benching import Bar
from assay_kernels.linear_scan.api import linear_scan


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a mixer's recurrence. gradient: of all arrays, beside the values."""

    batch: int
    seq: int
    heads: int
    head_dim: int = 64
    groups: int = 1
    state: int = 128
    chunk: int = 64
    gradient: bool = False
    dtype: str = "bfloat16"
    on: tuple[str, ...] = ("gpu",)

    @property
    def flops(self) -> int:
        """Of the products of chunks, forward; three times as many with gradients."""
        positions = self.batch * self.seq
        scores = 2 * self.groups * self.chunk * self.state
        each = 2 * self.chunk * self.head_dim + 4 * self.state * self.head_dim
        return positions * (scores + self.heads * each) * (3 if self.gradient else 1)

    @property
    def bytes(self) -> int:
        """x, y, b, c and the decays once; with gradients x, b, c and the decays are read again, and as many gradients written."""
        positions, itemsize = self.batch * self.seq, jnp.dtype(self.dtype).itemsize
        inputs = positions * (itemsize * (self.heads * self.head_dim + 2 * self.groups * self.state) + 4 * self.heads)
        outputs = positions * itemsize * self.heads * self.head_dim
        return inputs + outputs + (2 * inputs + outputs if self.gradient else 0)

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(x, log_decay, b, c) as shapes."""
        shared = (self.batch, self.seq, self.groups, self.state)
        x = (self.batch, self.seq, self.heads, self.head_dim)
        shapes = (x, self.dtype), (x[:3], "float32"), (shared, self.dtype), (shared, self.dtype)
        return tuple(jax.ShapeDtypeStruct(*pair) for pair in shapes)

    def arguments(self) -> tuple[jax.Array, ...]:
        """(x, log_decay, b, c), drawn."""
        keys = jax.random.split(jax.random.key(0), 4)
        x, decay, b, c = (jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, self.abstract(), strict=True))
        return 0.3 * x, -jax.nn.softplus(decay), 0.3 * b, 0.3 * c


SHAPES: Mapping[str, Shape] = {
    "mamba2_130m": Shape(8, 2048, 24),
    "mamba2_130m_gradient": Shape(8, 2048, 24, gradient=True),
    "mamba2_2.7b": Shape(4, 4096, 80),
    "mamba2_2.7b_gradient": Shape(4, 4096, 80, gradient=True),
    "small": Shape(2, 64, 4, 16, 1, 32, 16, True, "float32", ("cpu", "gpu")),
}
BARS: Sequence[Bar] = ()  # the issue names none


def contenders(shape: Shape) -> dict[str, Callable[..., Any]]:
    """Name -> function of `shape.arguments()`."""
    kernel = ("mosaic",) if jax.default_backend() == "gpu" else ()
    return {impl: call(shape, impl) for impl in ("reference", *kernel)}


def call(shape: Shape, impl: str) -> Callable[..., Any]:
    """The values by an implementation, or the gradients of sums of them too."""
    scan = lambda *arrays: linear_scan(*arrays, chunk=shape.chunk, impl=impl)
    if not shape.gradient:
        return scan

    def step(*arrays: jax.Array) -> Any:
        found, transpose = jax.vjp(scan, *arrays)
        return found, transpose(jax.tree.map(jnp.ones_like, found))

    return step
