"""What benchmarks/kernels.py runs of linear_cross_entropy: shapes, and the ways to a loss and its gradients."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.benching import Bar
from assay_kernels.linear_cross_entropy.api import linear_cross_entropy


@dataclasses.dataclass(frozen=True)
class Shape:
    """tokens x width times width x classes. gradients: whether the loss alone is measured, or its gradients too."""

    tokens: int
    width: int
    classes: int
    dtype: str = "float32"
    gradients: bool = True
    on: tuple[str, ...] = ("gpu",)

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
        """Of the loss one product, of its gradients two more."""
        return (6 if self.gradients else 2) * self.tokens * self.width * self.classes

    @property
    def bytes(self) -> int:
        """0: the products decide."""
        return 0


SHAPES: Mapping[str, Shape] = {
    "lm_code": Shape(2048, 128, 1024, on=("cpu", "gpu")),
    "gpt2": Shape(1024, 768, 50304, on=("cpu", "gpu")),
    "gpt2_124m": Shape(12288, 768, 50304),
    "gpt2_124m_bf16": Shape(32768, 768, 50304, "bfloat16"),
    "llama3_8b": Shape(8192, 4096, 128256),
    "llama3_8b_bf16": Shape(8192, 4096, 128256, "bfloat16"),
    "llama3_8b_bf16_forward": Shape(8192, 4096, 128256, "bfloat16", gradients=False),
}

BARS: Sequence[Bar] = (
    Bar("llama3_8b_bf16_forward", "recomputed", 633.0, "TFLOP/s"),
    *(Bar(shape, "blocked", 4.0, "x less memory", ("naive",)) for shape in ("gpt2", "gpt2_124m", "llama3_8b")),
)


def contenders(shape: Shape) -> dict[str, Callable[..., Any]]:
    """Name -> (x, w, labels, weights) -> (sum of weighted losses, (dx, dw)), or the sum alone."""

    def announced(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(linear_cross_entropy(x, w, labels, weights=weights, impl="chunked").loss * weights)

    def recomputed(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(linear_cross_entropy(x, w, labels, impl="chunked").loss * weights)

    def blocked(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(linear_cross_entropy(x, w, labels, impl="blocked").loss * weights)

    found = {"naive": _naive, "announced": announced, "recomputed": recomputed, "blocked": blocked}
    if not shape.gradients:
        return {name: found[name] for name in ("naive", "recomputed", "blocked")}
    return {name: jax.value_and_grad(loss, argnums=(0, 1)) for name, loss in found.items()}


def torch_contenders(shape: Shape) -> dict[str, Callable[..., Any]]:
    """The same in torch, as one writes it."""
    import torch

    def loss(x: Any, w: Any, labels: Any, weights: Any) -> Any:
        logits = (x @ w).float()
        return (torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none") * weights).sum()

    def gradients(x: Any, w: Any, labels: Any, weights: Any) -> Any:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        return torch.autograd.grad(loss(x, w, labels, weights), (x, w))

    return {"torch": gradients if shape.gradients else torch.no_grad()(loss)}


def _naive(x: jax.Array, w: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """As one writes it: logits in the inputs' dtype, then fp32; the label's by comparison, which is faster than a gather on CPU."""
    logits = (x @ w).astype(jnp.float32)
    chosen = labels[:, None] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1)
    nll = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return jnp.sum(nll * weights)
