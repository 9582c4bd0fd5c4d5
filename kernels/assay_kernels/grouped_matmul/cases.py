"""Calls of grouped_matmul that every implementation must get right: the op's conformance kit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from assay_kernels.grouped_matmul.shapes import Options
from assay_kernels.testing import Case

Sizes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Draw:
    """seed -> (x, w, group_sizes, Options). rows: M; those beyond the groups hold NaN. scale: of x."""

    sizes: Sizes
    rows: int
    width: int = 64
    columns: int = 64
    dtype: str = "bfloat16"
    out_dtype: str | None = None
    transpose_w: bool = False
    scale: float = 1.0

    def __call__(self, seed: int) -> tuple[Any, ...]:
        """The arguments."""
        rng = np.random.default_rng(seed)
        x = self.scale * rng.normal(size=(self.rows, self.width))
        x[sum(self.sizes) :] = np.nan
        shape = (self.columns, self.width) if self.transpose_w else (self.width, self.columns)
        w = rng.normal(size=(len(self.sizes), *shape))
        options = Options(self.transpose_w, None if self.out_dtype is None else jnp.dtype(self.out_dtype))
        arrays = jnp.asarray(x, self.dtype), jnp.asarray(w, self.dtype), jnp.asarray(self.sizes, jnp.int32)
        return *arrays, options


def case(sizes: Sizes, rows: int | None = None, **options: Any) -> Case:
    """A call with that many rows in each group, differentiated with respect to x and w. rows: without, as many as the groups have."""
    return Case(Draw(sizes, sum(sizes) if rows is None else rows, **options), differentiate=(0, 1))


CASES: Mapping[str, Case] = {
    "boundaries inside blocks": case((37, 0, 133, 1, 85), 263, width=128, columns=192),
    "transposed, in float32": case(
        (37, 0, 133, 1, 85), 263, width=128, columns=192, transpose_w=True, out_dtype="float32"
    ),
    "one group has everything": case((0, 300, 0), width=64, columns=128),
    "one group": case((256,), columns=128),
    "all groups empty": case((0, 0, 0), 40),
    "poison after the groups": case((5, 60, 3), 200, width=192, columns=64),
    "one row": case((0, 1), 1),
    "blocks and one more or less": case((127, 128, 129, 63, 65), 512),
    "groups of one row": case((1,) * 19, 24),
    "aligned": case((128, 256, 128), 512, width=128, columns=256),
    "primes": case((101, 7, 31), 139, width=64, columns=64),
    "float16": case((37, 91), 131, width=64, columns=128, dtype="float16"),
    "result in float32": case((37, 91), 131, width=64, columns=128, out_dtype="float32"),
    "large values": case((37, 91), 131, width=64, columns=128, scale=1e4),
    "float32": case((37, 0, 13, 1), 60, width=24, columns=20, dtype="float32"),
    "float32, transposed": case((37, 0, 13, 1), 60, width=24, columns=20, dtype="float32", transpose_w=True),
    "odd sizes": case((3, 4), 8, width=5, columns=7),
    "one by one": case((2, 1), 3, width=1, columns=1, dtype="float32"),
}
UNEVEN = (0, 1700, 3, 129, 0, 900, 64, 1, 250, 1049)
LARGE: Mapping[str, Case] = {
    "many columns": case(UNEVEN, 4100, width=1024, columns=1536),
    "many columns, transposed": case(UNEVEN, 4100, width=1024, columns=1536, transpose_w=True),
    "tiles of 192": case(UNEVEN, 4096, width=576, columns=960),
    "groups of one expert's share": case((33,) * 64, 2112, width=512, columns=768, dtype="float16"),
}
"""As large as a GPU's whole grid."""
