"""What benchmarks/kernels.py runs of rms_norm: its gradient, and residual and norm together, with XLA's kernels as rival."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.benching import Bar, Tunable
from assay_kernels.rms_norm.api import rms_norm
from assay_kernels.rms_norm.mosaic import Config, Tile, feasible, mosaic
from assay_kernels.rms_norm.reference import Options


@dataclasses.dataclass(frozen=True)
class Shape:
    """rows x width. mode: "vjp", the norm's gradient; "added", residual and norm; "step", both and then their gradient."""

    rows: int
    width: int
    mode: str = "vjp"
    dtype: str = "bfloat16"
    on: tuple[str, ...] = ("gpu",)

    @property
    def flops(self) -> int:
        """Memory counts alone."""
        return 0

    @property
    def bytes(self) -> int:
        """Each array once."""
        passes = {"vjp": 3, "added": 4, "step": 8}[self.mode]
        return passes * self.rows * self.width * jnp.dtype(self.dtype).itemsize

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(x, w, and more of x's shape: a cotangent, the residual, or the residual and two cotangents)."""
        x = jax.ShapeDtypeStruct((self.rows, self.width), self.dtype)
        w = jax.ShapeDtypeStruct((self.width,), self.dtype)
        return (x, w, x, x, x) if self.mode == "step" else (x, w, x)

    def arguments(self) -> tuple[jax.Array, ...]:
        """Drawn from a normal distribution."""
        keys = jax.random.split(jax.random.key(0), 5)
        return tuple(jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, self.abstract(), strict=False))


SHAPES: Mapping[str, Shape] = {
    "llama3_8b": Shape(16384, 4096),
    "llama3_8b_long": Shape(65536, 4096),
    "llama3_70b": Shape(16384, 8192),
    "gpt2": Shape(65536, 768),
    "gemma2_2b": Shape(32768, 2304),
    "heads": Shape(16384 * 32, 128),
    "llama3_8b_added": Shape(16384, 4096, "added"),
    "llama3_8b_step": Shape(16384, 4096, "step"),
    "llama3_70b_added": Shape(16384, 8192, "added"),
    "llama3_70b_step": Shape(16384, 8192, "step"),
    "small": Shape(256, 128, dtype="float32", on=("cpu", "gpu")),
}
BARS: Sequence[Bar] = (
    Bar("llama3_8b_long", "mosaic", 1.6, "x", ("xla",)),
    Bar("llama3_8b_long", "mosaic", 3.85, "TB/s"),
    Bar("llama3_8b_added", "mosaic", 3.85, "TB/s"),
)


def contenders(shape: Shape) -> dict[str, Callable[..., Any]]:
    """Name -> function of `shape.arguments()`."""
    names = {"xla": "reference"} | ({"mosaic": "mosaic"} if jax.default_backend() == "gpu" else {})
    return {name: call(shape, functools.partial(rms_norm, impl=impl)) for name, impl in names.items()}


def call(shape: Shape, norm: Callable[..., Any]) -> Callable[..., Any]:
    """What is measured of a function like `rms_norm`."""
    if shape.mode == "vjp":
        return lambda x, w, dy: jax.vjp(norm, x, w)[1](dy)
    if shape.mode == "added":
        return lambda x, w, residual: norm(x, w, residual=residual)

    def step(x: jax.Array, w: jax.Array, residual: jax.Array, dy: jax.Array, dtotal: jax.Array) -> Any:
        found, transpose = jax.vjp(lambda x, w, residual: norm(x, w, residual=residual), x, w, residual)
        return found, transpose((dy, dtotal))[:2]

    return step


def _run(shape: Shape, config: Config) -> Callable[..., Any]:
    def norm(x: jax.Array, w: jax.Array, residual: jax.Array | None = None) -> Any:
        found = mosaic(x, w, residual, Options(), config)
        return found[0] if residual is None else found

    return call(shape, norm)


def _key(shape: Shape) -> Mapping[str, int | str]:
    return {"width": shape.width, "dtype": shape.dtype, "residual": int(shape.mode != "vjp")}


def _space(shape: Shape) -> Sequence[Config]:
    itemsize = jnp.dtype(shape.dtype).itemsize
    every = [Config(groups, stages) for groups in (1, 2, 3, 4) for stages in (2, 3, 4, 6)]
    return [c for c in every if feasible(c, Tile(shape.width), itemsize, shape.mode != "vjp")]


TUNABLE: Mapping[str, Tunable] = {
    "mosaic": Tunable(key=_key, exact=("width", "residual"), space=_space, run=_run),
}
