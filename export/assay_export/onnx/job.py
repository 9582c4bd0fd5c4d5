"""A function to convert, as it travels to the subprocess."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from assay_export.onnx.specs import Input, abstract

Function = Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
    """function(weights, **inputs) -> outputs by name; weights: path -> (shape, dtype).

    In the graph that the subprocess writes the weights are inputs "weight:PATH" after the true inputs.
    """

    function: Function
    inputs: tuple[Input, ...]
    weights: Mapping[str, tuple[tuple[int, ...], str]]
    output_names: tuple[str, ...]
    opset: int

    def arguments(self) -> list[jax.ShapeDtypeStruct]:
        """The arguments of `flat`, for tracing."""
        return [*abstract(self.inputs), *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.weights.values())]

    def input_names(self) -> list[str]:
        """The names of `flat`'s arguments."""
        return [*(i.name for i in self.inputs), *(f"weight:{path}" for path in self.weights)]

    def flat(self, *arguments: Any) -> list[Any]:
        """The function with positional arguments and results."""
        count = len(self.inputs)
        named = {i.name: a for i, a in zip(self.inputs, arguments[:count], strict=True)}
        outputs = self.function(dict(zip(self.weights, arguments[count:], strict=True)), **named)
        return [outputs[name] for name in self.output_names]
