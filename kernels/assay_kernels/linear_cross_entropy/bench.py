"""What benchmarks/kernels.py runs of linear_cross_entropy: shapes, and the ways to a loss and its gradients."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.linear_cross_entropy.api import linear_cross_entropy

RIVAL = "naive"
FASTEST, SMALLEST = "announced", "blocked"


@dataclasses.dataclass(frozen=True)
class Shape:
    """tokens x width times width x classes. timed: also run, not only compiled. memory_target: least ratio of the rival's temp memory."""

    tokens: int
    width: int
    classes: int
    dtype: str = "float32"
    timed: bool = True
    memory_target: float | None = None

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """(x, w, labels, weights) as shapes."""
        shapes = (self.tokens, self.width), (self.width, self.classes), (self.tokens,), (self.tokens,)
        dtypes = self.dtype, self.dtype, "int32", "float32"
        return tuple(jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True))

    def arguments(self) -> tuple[jax.Array, ...]:
        """(x, w, labels, weights), drawn."""
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (self.tokens, self.width), self.dtype)
        w = 0.02 * jax.random.normal(keys[1], (self.width, self.classes), self.dtype)
        return x, w, jax.random.randint(keys[2], (self.tokens,), 0, self.classes), jnp.ones((self.tokens,), jnp.float32)

    @property
    def flops(self) -> int:
        """Of loss and gradients: three products."""
        return 6 * self.tokens * self.width * self.classes


SHAPES: Mapping[str, Shape] = {
    "lm_code": Shape(2048, 128, 1024),
    "gpt2": Shape(1024, 768, 50304, memory_target=4.0),
    "gpt2_124m": Shape(12288, 768, 50304, timed=False, memory_target=4.0),
    "llama3_8b": Shape(8192, 4096, 128256, timed=False, memory_target=4.0),
}


def contenders() -> dict[str, Callable[..., Any]]:
    """Name -> (x, w, labels, weights) -> (sum of weighted losses, (dx, dw))."""

    def announced(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(linear_cross_entropy(x, w, labels, weights=weights, impl="chunked").loss * weights)

    def recomputed(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(linear_cross_entropy(x, w, labels, impl="chunked").loss * weights)

    def blocked(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(linear_cross_entropy(x, w, labels, impl="blocked").loss * weights)

    found = {RIVAL: _naive, FASTEST: announced, "recomputed": recomputed, SMALLEST: blocked}
    return {name: jax.value_and_grad(loss, argnums=(0, 1)) for name, loss in found.items()}


def _naive(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """As one writes it: logits in the inputs' dtype, then fp32; the label's by comparison, which is faster than a gather on CPU."""
    logits = (x @ w).astype(jnp.float32)
    chosen = labels[:, None] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1)
    nll = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return jnp.sum(nll * weights)
