"""Groups of nodes that ONNX has one operation for: a runtime's time for a small array is the number of its nodes."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from assay_export.onnx.graphs import nodes_of, replace

WITH_RMS_NORMALIZATION = 23
"""The first opset that has it."""


def fused(graph: onnx.GraphProto, shapes: Mapping[str, list[object]], opset: int) -> None:
    """Put them together, in place. shapes: of the graph's values, by name."""
    patterns: list[Callable[[_Values, onnx.NodeProto], onnx.NodeProto | None]] = [_softmax]
    if opset >= WITH_RMS_NORMALIZATION:
        patterns.append(_rms_norm)
    values = _Values(graph, shapes)
    for node in graph.node:
        for pattern in patterns:
            found = pattern(values, node)
            if found is not None:
                node.CopyFrom(found)
    used = {name for node in nodes_of(graph) for name in node.input} | {o.name for o in graph.output}
    while any(not used & set(node.output) for node in graph.node):
        replace(graph.node, [node for node in graph.node if used & set(node.output)])
        used = {name for node in nodes_of(graph) for name in node.input} | {o.name for o in graph.output}


class _Values:
    """What gives each value of a graph, its shape, and its number where it is a constant one."""

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, list[object]]) -> None:
        self.shapes = shapes
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {t.name: t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL}

    def made(self, name: str, operation: str) -> onnx.NodeProto | None:
        """The node that gives it, if it is of that operation."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type == operation else None

    def array(self, name: str) -> np.ndarray | None:
        """The constant of that name."""
        found = self._constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def number(self, name: str) -> float | None:
        """The constant of that name, if it is one number."""
        found = self.array(name)
        return float(found.ravel()[0]) if found is not None and found.size == 1 else None

    def over_last(self, node: onnx.NodeProto, result: str) -> bool:
        """Whether a reduction is over the last axis, of which `result`, what is made of it, has one left."""
        axes, shape = self.array(node.input[1]) if len(node.input) > 1 else None, self.shapes.get(node.input[0])
        if shape is None or axes is None or axes.tolist() not in ([-1], [len(shape) - 1]):
            return False
        return self.shapes.get(result) == [*shape[:-1], 1]


def _softmax(values: _Values, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """exp(x - max x) / sum(exp(x - max x)), as jax.nn.softmax has it, over the last axis."""
    if node.op_type != "Div" or not (exp := values.made(node.input[0], "Exp")):
        return None
    total, shifted = values.made(node.input[1], "ReduceSum"), values.made(exp.input[0], "Sub")
    if not total or not shifted or total.input[0] != exp.output[0] or not values.over_last(total, node.input[1]):
        return None
    reshaped = values.made(shifted.input[1], "Reshape")
    largest = reshaped.input[0] if reshaped else shifted.input[1]
    if least := values.made(largest, "Max"):  # jax: no less than -inf
        others = [name for name in least.input if values.number(name) != -np.inf]
        largest = others[0] if len(others) == 1 else ""
    most = values.made(largest, "ReduceMax")
    if not most or most.input[0] != shifted.input[0] or not values.over_last(most, shifted.input[1]):
        return None
    return helper.make_node("Softmax", [shifted.input[0]], node.output, name=node.name, axis=-1)


def _rms_norm(values: _Values, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """x * (1 / sqrt(sum(x^2) / n + epsilon)) * scale over the last axis, of n."""
    if node.op_type != "Mul":
        return None
    for unit, scale in (node.input, node.input[::-1]):
        shape = values.shapes.get(scale)
        product = values.made(unit, "Mul")
        if product is None or shape is None or len(shape) != 1:
            continue
        for x, factor in (product.input, product.input[::-1]):
            epsilon = _epsilon(values, x, factor)
            if epsilon is not None and values.shapes.get(x, [None])[-1:] == shape:
                options = {"axis": -1, "epsilon": epsilon}
                return helper.make_node("RMSNormalization", [x, scale], node.output, name=node.name, **options)
    return None


def _epsilon(values: _Values, x: str, factor: str) -> float | None:
    """That of a factor 1 / sqrt(sum(x^2) / n + epsilon); None for any other factor."""
    inverse = values.made(factor, "Div")
    if inverse is None or values.number(inverse.input[0]) != 1.0:
        return None
    root = values.made(inverse.input[1], "Sqrt")
    total = root and values.made(root.input[0], "Add")
    if not total:
        return None
    mean, epsilon = values.made(total.input[0], "Div"), values.number(total.input[1])
    squares = mean and values.made(mean.input[0], "ReduceSumSquare")
    width = values.shapes.get(x, [None])[-1:]
    if not mean or not squares or squares.input[0] != x or not values.over_last(squares, squares.output[0]):
        return None
    return epsilon if [values.number(mean.input[1])] == width else None
