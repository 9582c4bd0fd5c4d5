"""The calls of quant_matmul that every implementation must do as exactly as the specification: its conformance kit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from assay_kernels.quant_matmul.formats import Kind, quantize
from assay_kernels.quant_matmul.shapes import Options
from assay_kernels.testing import Case


@dataclasses.dataclass(frozen=True)
class Draw:
    """Random x (rows, K) and quantised weights (K, N), some groups of them zeros. spread: of the scales, in powers of ten."""

    rows: int
    shape: tuple[int, int] = (512, 256)
    bits: int = 4
    group: int | None = 128
    kind: Kind = "int"
    dtype: str = "bfloat16"
    out_dtype: str | None = None
    spread: float = 1.0
    magnitude: float = 1.0

    def __call__(self, seed: int) -> tuple[Any, ...]:
        """The arguments of OP."""
        rng = np.random.default_rng(seed)
        w = rng.normal(size=self.shape) * 10.0 ** rng.uniform(-self.spread, self.spread, (1, self.shape[1]))
        w[: self.group or 0, :2] = 0.0
        weights = quantize(jnp.asarray(w, jnp.float32), bits=self.bits, group=self.group, kind=self.kind)
        x = jnp.asarray(self.magnitude * rng.normal(size=(self.rows, self.shape[0])), self.dtype)
        return x, weights.values, weights.scales, Options(weights.format, self.out_dtype)


def _case(rows: int, **changes: Any) -> Case:
    return Case(Draw(rows, **changes), differentiate=(0,))


CASES: Mapping[str, Case] = {
    "int4": _case(16),
    "int4, one row": _case(1),
    "int4, rows that fill nothing up": _case(13, shape=(768, 384)),
    "int4, groups of 64": _case(8, group=64),
    "int4, groups of 256": _case(5, group=256),
    "int4, 64 rows, fp32 result": _case(64, shape=(512, 128), out_dtype="float32"),
    "int8": _case(16, bits=8),
    "int8, groups of 64": _case(3, shape=(512, 128), bits=8, group=64),
    "fp8": _case(16, bits=8, kind="fp8"),
    "fp8, groups of 256": _case(9, shape=(512, 128), bits=8, group=256, kind="fp8"),
    "large": _case(4, magnitude=1e15, spread=6.0),
    "int8 for each channel": _case(17, shape=(53, 31), bits=8, group=None),
    "int4 for each channel": _case(17, shape=(53, 31), group=None),
    "fp8 for each channel": _case(17, shape=(53, 31), bits=8, group=None, kind="fp8"),
    "float16": _case(7, shape=(96, 31), group=32, dtype="float16"),
    "float32": _case(7, shape=(96, 31), group=32, dtype="float32"),
    "float32, int8 for each channel": _case(300, shape=(96, 31), bits=8, group=None, dtype="float32"),
}
