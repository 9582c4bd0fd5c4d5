"""What every implementation of rms_norm must compute as exactly as the specification: the edges of its shapes and values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from assay_kernels.rms_norm.reference import Options
from assay_kernels.testing import Case


@dataclasses.dataclass(frozen=True)
class Call:
    """The sizes and settings of a call. zeros: rows of nothing but 0. magnitude: of x; residual and w are near 1."""

    items: tuple[int, ...]
    width: int
    dtype: str = "bfloat16"
    residual: bool = False
    epsilon: float = 1e-6
    magnitude: float = 1.0
    zeros: int = 0

    def draw(self, seed: int) -> tuple[Any, ...]:
        """The positional arguments of OP."""
        rng = np.random.default_rng(seed)
        x = self.magnitude * rng.normal(size=(*self.items, self.width))
        x.reshape(-1, self.width)[: self.zeros] = 0.0
        w = rng.normal(size=self.width)
        residual = jnp.asarray(rng.normal(size=x.shape), self.dtype) if self.residual else None
        return jnp.asarray(x, self.dtype), jnp.asarray(w, self.dtype), residual, Options(self.epsilon)

    def case(self) -> Case:
        """The same for the conformance kit."""
        return Case(self.draw, differentiate=(0, 1, 2) if self.residual else (0, 1))


CALLS: Mapping[str, Call] = {
    "one row": Call((1,), 256),
    "one row, across": Call((1,), 768, residual=True),
    "a tile and one row": Call((17,), 128, epsilon=0.0),
    "heads": Call((2, 3, 4), 64, "float32"),
    "residual": Call((5, 7), 192, residual=True),
    "odd number of lines": Call((6,), 1280, "float32", residual=True),
    "fp16": Call((3, 3), 512, "float16"),
    "huge": Call((4,), 256, "float32", magnitude=1e15),
    "tiny": Call((4,), 256, "float32", magnitude=1e-15),
    "rows of zeros": Call((9,), 128, residual=False, zeros=4),
}
LARGE_CALLS: Mapping[str, Call] = {
    "long rows": Call((4099,), 4096),
    "long rows and residual": Call((2, 1031), 8192, residual=True),
    "fp32": Call((1021,), 8192, "float32"),
    "gemma 2": Call((1021,), 2304),
    "many short rows": Call((100003, 8), 64),
    "heads of 128": Call((65537,), 128, residual=True),
}
CASES: Mapping[str, Case] = {name: call.case() for name, call in CALLS.items()}
LARGE: Mapping[str, Case] = {name: call.case() for name, call in LARGE_CALLS.items()}
