"""What passes over graphs have in common."""

from collections.abc import Iterable
from typing import Any

import onnx
from onnx import helper


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those of the graph and of the graphs within."""
    return [n for node in graph.node for n in (node, *(m for inner in within(node) for m in nodes_of(inner)))]


def results_of(graph: onnx.GraphProto) -> set[str]:
    """The names of what the graph, and those within, give."""
    inner = (results_of(g) for node in graph.node for g in within(node))
    return {o.name for o in graph.output}.union(*inner)


def within(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of a loop or a condition."""
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Its attributes by name, as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def replace(field: Any, items: Iterable[Any]) -> None:
    """A repeated field's new content."""
    kept = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(kept)
