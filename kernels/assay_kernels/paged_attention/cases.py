"""The calls of paged_attention that every implementation must do as exactly as the specification: its conformance kit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from assay_kernels.paged_attention.shapes import Options
from assay_kernels.testing import Case

PLAIN = Options(0.125)


@dataclasses.dataclass(frozen=True)
class Cache:
    """Random queries over a cache whose unused pages, table entries and slots are poisoned. lengths: of each row; new: likewise or None.

    spare: pages that no row uses. magnitude: of the queries. evicted: slots before every query's window are poisoned too.
    """

    lengths: Sequence[int]
    tokens: int = 1
    new: Sequence[int] | None = None
    heads: tuple[int, int] = (8, 2)
    head_dim: int = 64
    page_size: int = 16
    max_pages: int | None = None
    spare: int = 3
    options: Options = PLAIN
    dtype: str = "bfloat16"
    magnitude: float = 1.0
    evicted: bool = False

    def __call__(self, seed: int) -> tuple[Any, ...]:
        """The arguments of OP."""
        rng = np.random.default_rng(seed)
        lengths, size = np.asarray(self.lengths, np.int32), self.page_size
        used = -(-lengths // size)
        most = self.max_pages or max(1, int(used.max(initial=0)) + 1)
        pages = int(used.sum()) + self.spare
        order = rng.permutation(pages)
        table = rng.integers(0, pages, (len(lengths), most)).astype(np.int32)
        k, v = (rng.normal(size=(pages, self.heads[1], size, self.head_dim)).astype(np.float32) for _ in range(2))
        seen = np.zeros((pages, size), bool)
        start = 0
        for row, (length, count) in enumerate(zip(lengths, used, strict=True)):
            table[row, :count] = order[start : start + count]
            slots = np.arange(length)
            oldest = length - (self.new[row] if self.new else self.tokens) + 1 - (self.options.window or length)
            slots = slots[slots >= oldest] if self.evicted else slots
            seen[table[row, slots // size], slots % size] = True
            start += count
        for x in (k, v):
            np.moveaxis(x, 1, 2)[~seen] = np.nan
        q = self.magnitude * rng.normal(size=(len(lengths), self.tokens, self.heads[0], self.head_dim))
        new = None if self.new is None else np.asarray(self.new, np.int32)
        if new is not None:
            q[np.arange(self.tokens) >= new[:, None]] = np.nan
        arrays = (jnp.asarray(x, self.dtype) for x in (q, k, v))
        integers = (jnp.asarray(table), jnp.asarray(lengths), None if new is None else jnp.asarray(new))
        return *arrays, *integers, self.options


def _case(*lengths: int, **changes: Any) -> Case:
    return Case(Cache(lengths, **changes))


CASES: Mapping[str, Case] = {
    "decode": _case(1, 63, 0, 65, 129, 320, heads=(4, 1)),
    "one row": _case(17, heads=(1, 1)),
    "all rows empty": _case(0, 0),
    "heads of 128, pages of 64, group 1": _case(97, 200, heads=(2, 2), head_dim=128, page_size=64),
    "heads of 256, pages of 128, group 8": _case(300, 131, heads=(8, 1), head_dim=256, page_size=128),
    "group of 3, pages of 32": _case(33, 161, heads=(6, 2), page_size=32),
    "float16": _case(77, 5, dtype="float16"),
    "window": _case(1, 40, 300, 129, heads=(4, 1), options=Options(0.125, window=40), evicted=True),
    "window of one": _case(65, 64, options=Options(0.125, window=1), evicted=True),
    "softcap": _case(90, 150, options=Options(0.125, softcap=2.0)),
    "extreme logits": Case(Cache((90, 150), magnitude=1e4), ceiling=2e-2),
    "long table": _case(100, 9, max_pages=64),
    "several tokens": _case(3, 64, 70, 0, 2, tokens=3),
    "fewer new tokens": _case(128, 70, 5, 9, tokens=5, new=(5, 3, 1, 0), heads=(4, 2)),
    "prefill": _case(100, 200, 70, tokens=70, new=(70, 33, 70)),
    "prefill, window, softcap": _case(
        150, 320, tokens=50, heads=(4, 1), options=Options(0.125, window=70, softcap=5.0), evicted=True
    ),
    "prefill, heads of 128": _case(170, tokens=150, heads=(2, 2), head_dim=128),
}
