"""What an ONNX graph reads: named inputs whose dimensions are numbers or names, and arrays to try them with."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a graph.

    shape: sizes; a name stands for a symbolic dimension, the same in all inputs.
    low, high: integers are drawn from [low, high); high may be the name of a dimension, as for indices into it. Unused for floats.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    low: int = 0
    high: int | str = 2

    def sized(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the symbolic dimensions are `dims`."""
        return tuple(dims[size] if isinstance(size, str) else size for size in self.shape)

    def draw(self, dims: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
        """A random array: normal, uniform integers, or coin flips."""
        shape = self.sized(dims)
        dtype = jnp.dtype(self.dtype)
        if jnp.issubdtype(dtype, jnp.integer):
            high = dims[self.high] if isinstance(self.high, str) else self.high
            return rng.integers(self.low, high, shape).astype(dtype)
        if dtype == bool:
            return rng.random(shape) < 0.5
        return rng.normal(size=shape).astype(dtype)


def symbols(inputs: Sequence[Input]) -> tuple[str, ...]:
    """The names of the symbolic dimensions, in order of appearance."""
    return tuple(dict.fromkeys(size for i in inputs for size in i.shape if isinstance(size, str)))


def abstract(inputs: Sequence[Input]) -> list[jax.ShapeDtypeStruct]:
    """The inputs for tracing, with jax's symbolic dimensions, all of one scope."""
    names = symbols(inputs)
    sizes = dict(zip(names, jax.export.symbolic_shape(",".join(names)), strict=True)) if names else {}
    return [
        jax.ShapeDtypeStruct(tuple(sizes[d] if isinstance(d, str) else d for d in i.shape), jnp.dtype(i.dtype))
        for i in inputs
    ]


def corners(dims: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Sizes to check at: every listed value of every dimension, the smallest and the largest of all together among them.

    Dimensions take their values in step, each from another start, so that the number of corners is that of the longest list plus two.

    >>> corners({"batch": (1, 2, 5), "seq": (1, 7, 64)})[1:3]
    [{'batch': 2, 'seq': 7}, {'batch': 5, 'seq': 64}]
    """
    if not dims:
        return [{}]
    longest = max(len(values) for values in dims.values())
    found = [{name: values[min(i, len(values) - 1)] for name, values in dims.items()} for i in range(longest)]
    for shift in range(1, len(dims)):
        found.append({n: v[(i * shift + longest - 1) % len(v)] for i, (n, v) in enumerate(reversed(list(dims.items())))})
    unique = {tuple(sorted(corner.items())): corner for corner in found}
    return list(unique.values())
