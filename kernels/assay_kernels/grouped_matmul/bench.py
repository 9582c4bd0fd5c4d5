"""What benchmarks/kernels.py runs of grouped_matmul: the three products of a training step, and decoding, at models' sizes."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from assay_kernels.benching import Bar, Tunable
from assay_kernels.grouped_matmul.api import OP, grouped_matmul
from assay_kernels.grouped_matmul.configs import EXACT, Outer, Product, outer_rule, product_rule
from assay_kernels.grouped_matmul.shapes import Options, bounds
from assay_kernels.target import current_target

Way = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Shape:
    """x (rows, width), w (groups, width, columns). product: which of the three. even: groups of one size; else from a half to twice it."""

    rows: int
    width: int
    columns: int
    groups: int
    product: Literal["forward", "towards_x", "towards_w"] = "forward"
    dtype: str = "bfloat16"
    even: bool = False
    on: tuple[str, ...] = ("gpu",)

    @property
    def flops(self) -> int:
        """Of the product of all rows."""
        return 2 * self.rows * self.width * self.columns

    @property
    def bytes(self) -> int:
        """Of x, w and the result, each once; an expert without rows is counted too."""
        size = jnp.dtype(self.dtype).itemsize
        return size * (self.rows * (self.width + self.columns) + self.groups * self.width * self.columns)

    def sizes(self) -> np.ndarray:
        """Rows of each group, which add up to all."""
        share = np.ones(self.groups) if self.even else np.exp2(np.random.default_rng(0).uniform(-1, 1, self.groups))
        ends = np.rint(np.cumsum(share) / np.sum(share) * self.rows).astype(np.int32)
        return np.diff(ends, prepend=np.int32(0)).astype(np.int32)

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(x, w, sizes) as shapes, (dy, w, sizes) towards x, (x, dy, sizes) towards w."""
        x, dy = (self.rows, self.width), (self.rows, self.columns)
        w = self.groups, self.width, self.columns
        pair = {"forward": (x, w), "towards_x": (dy, w), "towards_w": (x, dy)}[self.product]
        arrays = (jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype)) for shape in pair)
        return *arrays, jax.ShapeDtypeStruct((self.groups,), jnp.dtype("int32"))

    def arguments(self) -> tuple[jax.Array, ...]:
        """The same, drawn."""
        *arrays, _ = self.abstract()
        keys = jax.random.split(jax.random.key(0), 2)
        drawn = [jax.random.normal(key, a.shape, a.dtype) for key, a in zip(keys, arrays, strict=True)]
        return *drawn, jnp.asarray(self.sizes())


LARGE, MIXTRAL, CPU = (262144, 7168, 1024, 256), (8192, 4096, 14336, 8), (2048, 512, 1408, 8)
EVERYWHERE = ("cpu", "gpu")
SHAPES: Mapping[str, Shape] = {
    "mixtral_forward": Shape(*MIXTRAL),
    "mixtral_towards_x": Shape(*MIXTRAL, product="towards_x"),
    "mixtral_towards_w": Shape(*MIXTRAL, product="towards_w"),
    "deepseek_v3_forward": Shape(262144, 7168, 512, 256),
    "deepseek_v3_down": Shape(262144, 512, 7168, 256),
    "deepseek_v3_towards_x": Shape(262144, 1024, 7168, 256, product="towards_x"),
    "deepseek_v3_towards_w": Shape(*LARGE, product="towards_w"),
    "deepseek_v3_towards_w_even": Shape(*LARGE, product="towards_w", even=True),
    "qwen3_30b_forward": Shape(393216, 2048, 768, 128),
    "gpt_oss_20b_forward": Shape(32768, 2880, 5760, 32),
    "decode": Shape(8, 4096, 4096, 8, even=True),
    "cpu_forward": Shape(*CPU, dtype="float32", on=EVERYWHERE),
    "cpu_towards_x": Shape(*CPU, product="towards_x", dtype="float32", on=EVERYWHERE),
    "cpu_towards_w": Shape(*CPU, product="towards_w", dtype="float32", on=EVERYWHERE),
}
BARS: Sequence[Bar] = (
    Bar("mixtral_forward", "mosaic", 700.0, "TFLOP/s"),
    Bar("deepseek_v3_forward", "mosaic", 480.0, "TFLOP/s"),
    Bar("deepseek_v3_towards_x", "mosaic", 425.0, "TFLOP/s"),
    Bar("deepseek_v3_towards_w", "mosaic", 613.0, "TFLOP/s"),
)


def contenders(shape: Shape) -> dict[str, Way]:
    """Ours that can do it here, jax's ragged_dot, and jax's own Mosaic kernels where they run."""
    reasons = {name: _refused(shape, name) for name in OP.names}
    found: dict[str, Way] = {k: functools.partial(_ours, shape, k) for k, why in reasons.items() if why is None}
    found["ragged_dot"] = functools.partial(_ragged_dot, shape)
    if current_target().is_hopper and shape.product != "towards_x" and shape.dtype != "float32":
        found |= _pallas(shape)
    if shape.rows > 4096:
        found.pop("reference", None)  # all groups for all rows, one after the other
    return found


def torch_contenders(shape: Shape) -> dict[str, Way]:
    """PyTorch's grouped product (CUTLASS), of the same arguments as torch tensors."""
    import torch

    product = getattr(torch, "_grouped_mm", None)
    if product is None or shape.dtype != "bfloat16":
        return {}

    def run(a: Any, b: Any, sizes: Any) -> Any:
        ends = torch.cumsum(sizes, 0, dtype=torch.int32)
        if shape.product == "towards_w":
            return product(a.t(), b, offs=ends)
        return product(a, b.transpose(1, 2) if shape.product == "towards_x" else b, offs=ends)

    return {"torch": run}


def _refused(shape: Shape, name: str) -> str | None:
    arrays = [jax.ShapeDtypeStruct(s, jnp.dtype(shape.dtype)) for s in ((shape.rows, shape.width), _w(shape))]
    sizes = jax.ShapeDtypeStruct((shape.groups,), jnp.dtype("int32"))
    implementation = OP._implementations[name]
    return implementation.supports(current_target(), *arrays, sizes, Options())


def _w(shape: Shape) -> tuple[int, int, int]:
    return shape.groups, shape.width, shape.columns


def _ours(shape: Shape, impl: str, a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    if shape.product != "towards_w":
        return grouped_matmul(a, b, sizes, transpose_w=shape.product == "towards_x", impl=impl)
    unused = jnp.zeros(
        _w(shape), a.dtype
    )  # the gradient towards w does not depend on it; the compiler leaves both away
    gradient: jax.Array = jax.vjp(lambda w: grouped_matmul(a, w, sizes, impl=impl), unused)[1](b)[0]
    return gradient


def _ragged_dot(shape: Shape, a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    if shape.product == "forward":
        return jax.lax.ragged_dot(a, b, sizes)
    if shape.product == "towards_x":
        return jax.lax.ragged_dot(a, b.swapaxes(1, 2), sizes)
    numbers = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return jax.lax.ragged_dot_general(a, b, sizes, numbers)


def _pallas(shape: Shape) -> dict[str, Way]:
    """jax's demonstrations, with the blocks that suit them for large products."""
    try:
        from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu, transposed_ragged_dot_mgpu
    except ImportError:
        return {}
    blocks = {"block_m": 128, "block_n": 128, "block_k": 64, "max_concurrent_steps": 4, "grid_block_n": 4}
    kernel = (
        transposed_ragged_dot_mgpu.transposed_ragged_dot if shape.product == "towards_w" else ragged_dot_mgpu.ragged_dot
    )
    if shape.columns % 512 or shape.rows < 128:
        return {}
    return {"jax_pallas": lambda a, b, sizes: kernel(a, b, group_sizes=sizes, **blocks)}


def _product_key(shape: Shape) -> Mapping[str, int | str]:
    k, n = (shape.width, shape.columns) if shape.product == "forward" else (shape.columns, shape.width)
    order = "k,n" if shape.product == "forward" else "n,k"
    return {"rows": shape.rows, "groups": shape.groups, "width": k, "columns": n, "w": order}


def _products(shape: Shape) -> list[Product]:
    if shape.product == "towards_w" or shape.dtype == "float32":
        return []
    columns = shape.columns if shape.product == "forward" else shape.width
    rule = product_rule(columns)
    wide = [n for n in (256, 192, 128, 64) if columns % n == 0][:2]
    return [
        dataclasses.replace(product_rule(n), columns=n, stages=stages, together=together)
        for n, together in itertools.product(wide, (4, 8, 16, 32))
        for stages in (3, 4, 5, 6)
        if stages * (128 + n) <= rule.stages * (128 + rule.columns)
    ]


def _run_product(shape: Shape, config: Product) -> Way:
    from assay_kernels.grouped_matmul.mosaic import product

    def run(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
        turned = shape.product == "towards_x"
        return product(a, b, *bounds(sizes, a.shape[0]), transpose_w=turned, out_dtype=a.dtype, config=config)

    return run


def _outers(shape: Shape) -> list[Outer]:
    if shape.product != "towards_w" or shape.dtype == "float32":
        return []
    rule = outer_rule(shape.width, shape.columns)
    return [
        dataclasses.replace(rule, stages=stages, together=together)
        for stages, together in itertools.product(range(3, rule.stages + 1), (4, 8, 16, 32))
    ]


def _run_outer(shape: Shape, config: Outer) -> Way:
    from assay_kernels.grouped_matmul.mosaic import outer

    return lambda a, b, sizes: outer(a, b, *bounds(sizes, a.shape[0]), config=config)


def _outer_key(shape: Shape) -> Mapping[str, int | str]:
    return {"rows": shape.rows, "groups": shape.groups, "width": shape.width, "columns": shape.columns}


TUNABLE: Mapping[str, Tunable] = {
    "mosaic": Tunable(_product_key, EXACT, _products, _run_product),
    "mosaic_outer": Tunable(_outer_key, EXACT, _outers, _run_outer),
}
