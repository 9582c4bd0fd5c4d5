"""What a converted graph must pass: the checker, the shapes that it declares, and the program's own numbers at many sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay.exported import Dim, Signature, Tensor

Arrays = dict[str, np.ndarray]


class Wrong(Exception):
    """A graph that does not compute the program."""


def corners(signature: Signature, dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Sizes that take in every corner of every dim, few of them: the smallest and the largest of all together come first."""
    possible = list(signature.sizes(dims))
    chosen: list[dict[str, int]] = []
    missing = {item for sizes in possible for item in sizes.items()}
    for sizes in [possible[0], possible[-1]]:
        chosen.append(sizes)
        missing -= set(sizes.items())
    while missing:
        best = max(possible, key=lambda sizes: len(missing & set(sizes.items())))
        chosen.append(best)
        missing -= set(best.items())
    return [sizes for i, sizes in enumerate(chosen) if sizes not in chosen[:i]]


def drawn(inputs: Mapping[str, Tensor], sizes: Mapping[str, int], rng: np.random.Generator) -> Arrays:
    """Random inputs: normal, integers in [0, below), coin flips."""
    return {name: _draw(tensor, sizes, rng) for name, tensor in inputs.items()}


def _draw(tensor: Tensor, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    shape, dtype = tensor.at(sizes), jnp.dtype(tensor.dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        below = sizes[tensor.below] if isinstance(tensor.below, str) else tensor.below
        return rng.integers(0, below or 2, shape).astype(dtype)
    if dtype == bool:
        return rng.random(shape) < 0.5
    return rng.normal(size=shape).astype(dtype)


def compare(got: np.ndarray, want: np.ndarray) -> float:
    """max |got - want| relative to max |want|; exact for integers. Raises Wrong where shape, dtype or not-numbers differ."""
    if got.shape != want.shape or got.dtype != want.dtype:
        raise Wrong(f"is {got.dtype}{list(got.shape)}, and must be {want.dtype}{list(want.shape)}")
    if want.size == 0:
        return 0.0
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        raise Wrong("is not a number where it should be one, or the reverse")
    same = (a == b) | np.isnan(a)
    scale = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
    worst = np.max(np.abs(np.where(same, 0.0, a - b)))
    if not jnp.issubdtype(want.dtype, jnp.floating):
        return float(worst)
    return float(worst / scale) if scale else float(worst)
