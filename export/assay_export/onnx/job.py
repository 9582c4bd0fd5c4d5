"""A program to convert, as it travels to the subprocess."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from assay.exported import Dim, Program
from assay_export.symbolic import symbols

WEIGHT = "weights/"
"""Before the path of a weight, in the names of a graph."""

NEXT = "next/"
"""Before the name of an output that an input has too: the names of a graph must differ."""


@dataclasses.dataclass(frozen=True)
class Job:
    """weights: path -> (shape, dtype). In the graph that the subprocess writes, they are inputs after the true ones."""

    program: Program
    dims: Mapping[str, Dim]
    weights: Mapping[str, tuple[tuple[int, ...], str]]
    outputs: tuple[str, ...]
    opset: int

    def arguments(self) -> list[jax.ShapeDtypeStruct]:
        """The arguments of `flat`, for tracing."""
        inputs = symbols(self.program.signature, self.dims).values()
        return [*inputs, *(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in self.weights.values())]

    def sizes(self) -> dict[str, Any]:
        """Name of a dim -> its symbol, as `arguments` has it."""
        sizes = (size for argument in self.arguments() for size in argument.shape if not isinstance(size, int))
        return {str(size): size for size in sizes}

    def input_names(self) -> list[str]:
        """The names of `flat`'s arguments."""
        return [*self.program.signature.inputs, *(f"{WEIGHT}{path}" for path in self.weights)]

    def output_names(self) -> list[str]:
        """The names of the graph's outputs; one that is an input's too, such as a cache's, is marked."""
        return [f"{NEXT}{name}" if name in self.program.signature.inputs else name for name in self.outputs]

    def flat(self, *arguments: Any) -> list[Any]:
        """The program with positional arguments and results."""
        inputs = self.program.signature.inputs
        named = dict(zip(inputs, arguments[: len(inputs)], strict=True))
        weights = dict(zip(self.weights, arguments[len(inputs) :], strict=True))
        found = self.program.function(weights, named)
        return [found[name] for name in self.outputs]
