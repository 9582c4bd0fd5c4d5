"""What every implementation of linear_scan must compute as exactly as the specification: the edges of chunks, runs and decays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from assay_kernels.linear_scan.reference import Options
from assay_kernels.testing import Case


@dataclasses.dataclass(frozen=True)
class Call:
    """The sizes and settings of a call. rate: the mean of -log_decay. starts: the probability of a new run at each position."""

    batch: int = 2
    seq: int = 64
    heads: int = 2
    groups: int = 1
    head_dim: int = 8
    width: int = 16
    dtype: str = "float32"
    rate: float = 0.5
    starts: float | None = None
    with_state: bool = False
    chunk: int = 16

    def draw(self, seed: int) -> tuple[Any, ...]:
        """The positional arguments of OP, such that sums over a row are of size 1."""
        rng = np.random.default_rng(seed)
        x = 0.3 * rng.normal(size=(self.batch, self.seq, self.heads, self.head_dim))
        log_decay = -self.rate * rng.exponential(size=x.shape[:3])
        b, c = 0.5 * rng.normal(size=(2, self.batch, self.seq, self.groups, self.width))
        state = rng.normal(size=(self.batch, self.heads, self.head_dim, self.width)) if self.with_state else None
        runs = None
        if self.starts is not None:
            begins = rng.random((self.batch, self.seq)) < self.starts
            begins[:, 0] = False
            runs = jnp.asarray(np.cumsum(begins, axis=1), jnp.int32)
        before = None if state is None else jnp.asarray(state, jnp.float32)
        arrays = [jnp.asarray(v, self.dtype) for v in (x, b, c)]
        return arrays[0], jnp.asarray(log_decay, jnp.float32), *arrays[1:], runs, before, Options(self.chunk)

    def case(self) -> Case:
        """The same for the conformance kit."""
        # Decays between positions come from differences of sums of logarithms, which in fp32 are off by 6e-8 of the sums.
        ceiling = 2e-7 * self.rate * self.chunk if self.dtype == "float32" and self.rate > 1 else None
        return Case(self.draw, differentiate=(0, 1, 2, 3, 5) if self.with_state else (0, 1, 2, 3), ceiling=ceiling)


CALLS: Mapping[str, Call] = {
    "one position": Call(seq=1, with_state=True),
    "less than a chunk": Call(seq=15),
    "a chunk": Call(seq=16),
    "a chunk and one": Call(seq=17, with_state=True),
    "primes": Call(seq=53, heads=3, head_dim=5, width=7),
    "groups": Call(seq=40, heads=4, groups=2),
    "runs": Call(seq=50, starts=0.15, with_state=True),
    "each position a run": Call(seq=20, starts=1.0),
    "no decay": Call(seq=40, rate=0.0),
    "strong decay": Call(seq=40, rate=40.0),
    "bf16": Call(seq=40, dtype="bfloat16", starts=0.1),
}
LARGE_CALLS: Mapping[str, Call] = {
    "mamba 2, 130M": Call(2, 2048, 24, 1, 64, 128, "bfloat16", chunk=64),
    "runs and state": Call(1, 4104, 8, 2, 64, 128, "bfloat16", starts=0.003, with_state=True, chunk=64),
}
KERNEL: Mapping[str, Call] = {
    "runs and state": Call(1, 136, 2, 1, 64, 64, "bfloat16", starts=0.05, with_state=True),
    "less than a chunk": Call(1, 24, 2, 2, 64, 64, "float16"),
    "wide state": Call(1, 64, 1, 1, 64, 128, "bfloat16"),
    "wide heads": Call(1, 72, 1, 1, 128, 64, "bfloat16", rate=5.0),
}
CASES: Mapping[str, Case] = {name: call.case() for name, call in {**CALLS, **KERNEL}.items()}
LARGE: Mapping[str, Case] = {name: call.case() for name, call in LARGE_CALLS.items()}
