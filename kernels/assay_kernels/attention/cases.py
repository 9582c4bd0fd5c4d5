"""What every implementation of attention must compute as exactly as the specification: the edges of its masks and shapes.

`CASES` are small enough for an interpreter; `LARGE` are for a GPU.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from assay_kernels.attention.shapes import Options
from assay_kernels.testing import Case

LSE = Options(lse=True)


@dataclasses.dataclass(frozen=True)
class Call:
    """The sizes and settings of a call. segments: lengths of packed documents, in turn the batch's; the rest of a row is one more."""

    batch: int = 1
    queries: int = 64
    keys: int = 64
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 64
    dtype: str = "bfloat16"
    offset: int = 0
    segments: tuple[tuple[int, ...], ...] | None = None
    other_segments: bool = False
    bias: tuple[int, ...] | None = None
    magnitude: float = 1.0
    options: Options = LSE

    def draw(self, seed: int) -> tuple[Any, ...]:
        """The positional arguments of OP."""
        rng = np.random.default_rng(seed)
        shapes = ((self.queries, self.heads), (self.keys, self.kv_heads), (self.keys, self.kv_heads))
        q, k, v = (
            jnp.asarray(rng.normal(size=(self.batch, *shape, self.head_dim)) * self.magnitude, self.dtype)
            for shape in shapes
        )
        q_ids, kv_ids = (None, None) if self.segments is None else (self.ids(self.queries), self.ids(self.keys))
        if kv_ids is not None and self.other_segments:
            kv_ids = kv_ids + 1
        bias = None if self.bias is None else jnp.asarray(rng.normal(size=self.bias), "float32")
        return q, k, v, q_ids, kv_ids, bias, self.offset, None, self.options

    def ids(self, tokens: int) -> Any:
        """(batch, tokens) int32: 0 for the first document, and so on."""
        assert self.segments is not None
        rows = [self.segments[i % len(self.segments)] for i in range(self.batch)]
        found = np.zeros((self.batch, tokens), np.int32)
        for row, lengths in zip(found, rows, strict=True):
            for end in np.cumsum(lengths):
                row[end:] += 1
        return jnp.asarray(found)

    def case(self) -> Case:
        """The same for the conformance kit."""
        return Case(self.draw, differentiate=(0, 1, 2) + (() if self.bias is None else (5,)))


def causal(**options: Any) -> Options:
    """Causal, with lse."""
    return Options(causal=True, lse=True, **options)


CALLS: Mapping[str, Call] = {
    "one token": Call(queries=1, keys=1),
    "full": Call(batch=2, queries=65, keys=130, heads=2),
    "causal": Call(queries=193, keys=193, options=causal()),
    "grouped": Call(queries=64, keys=64, heads=2, kv_heads=1, options=causal()),
    "window": Call(queries=200, keys=200, options=causal(window=67)),
    "window of one": Call(queries=65, keys=65, options=causal(window=1)),
    "offset": Call(queries=37, keys=150, offset=101, options=causal(window=40)),
    "rows that see nothing": Call(queries=130, keys=70, offset=-3, options=causal(window=20)),
    "segments": Call(batch=2, queries=200, keys=200, segments=((1, 63, 65), (129,)), options=causal()),
    "segments both ways": Call(queries=130, keys=70, segments=((40, 60),)),
    "segments that never meet": Call(queries=64, keys=64, segments=((10,),), other_segments=True),
    "soft-cap": Call(queries=70, keys=70, magnitude=3.0, options=causal(softcap=5.0)),
    "scale": Call(queries=64, keys=64, options=Options(scale=0.5, lse=True)),
    "extreme": Call(queries=64, keys=64, magnitude=30.0, options=causal()),
    "fp16": Call(queries=64, keys=64, dtype="float16", options=causal()),
    "several heads": Call(queries=130, keys=130, heads=4, kv_heads=2, options=causal()),
    "all at once": Call(
        queries=70, keys=130, heads=2, offset=60, segments=((50, 40),), options=causal(window=50, softcap=5.0)
    ),
    "head dim 128": Call(queries=129, keys=129, head_dim=128, options=causal()),
}
BIASED: Mapping[str, Call] = {
    "bias": Call(batch=2, queries=20, keys=30, heads=2, bias=(1, 2, 20, 30)),
    "bias for all rows": Call(batch=2, queries=20, keys=30, heads=2, bias=(2, 1, 1, 30), options=causal()),
}
PACKED = tuple((1000, 1, 500 + i, 1047, 700) for i in range(4))
LARGE_CALLS: Mapping[str, Call] = {
    **{f"head dim {d}": Call(2, 1023, 1023, 8, 2, d, options=causal()) for d in (64, 96, 128, 192, 256)},
    "long": Call(1, 8192, 8192, 2, 1, 128, options=causal()),
    "long window": Call(1, 8192, 8192, 2, 1, 128, options=causal(window=1000)),
    "packed": Call(4, 4096, 4096, 4, 4, 128, segments=PACKED, options=causal(softcap=30.0)),
    "one key head": Call(2, 777, 2000, 8, 1, 128, offset=1223, options=causal()),
    # Rows whose first blocks are hidden while others of their tile see them; the scales are such that a fused product shows.
    **{
        f"hidden first, head dim {d}": Call(
            2, 1023, 1023, 4, 2, d, segments=((100, 300, 200), (511, 2)), options=causal(window=150)
        )
        for d in (64, 128, 192)
    },
    "hidden first, scaled": Call(1, 700, 900, 2, 2, 128, offset=-60, options=causal(window=90, scale=0.1234)),
    "full, unlike lengths": Call(2, 1500, 300, 4, 4, 64),
}
CASES: Mapping[str, Case] = {name: call.case() for name, call in {**CALLS, **BIASED}.items()}
LARGE: Mapping[str, Case] = {name: call.case() for name, call in LARGE_CALLS.items()}
