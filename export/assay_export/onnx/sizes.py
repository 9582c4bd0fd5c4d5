"""Sizes in a graph, worked out: of a program with dynamic dims jax2onnx computes every shape anew each time it runs.

Integers that follow from the sizes of the inputs become constants, those that are computed already are not computed again, and what
changes no shape is left out.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from jax.errors import InconclusiveDimensionOperation
from onnx import TensorProto, helper, numpy_helper

from assay_export.onnx.graphs import attributes_of, nodes_of, replace, results_of, within

MOST = 64
"""Numbers of a tensor that is worked out: shapes, and what is computed from them."""
ROUNDS = 8
INTEGERS = {TensorProto.INT64: np.int64, TensorProto.INT32: np.int32, TensorProto.BOOL: np.bool_}
COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
ELEMENTWISE = (*COMPARISONS, "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Where", "And", "Or")
Shape = list[Any]
"""Sizes: numbers, jax's symbols, None where unknown."""


def worked_out(model: onnx.ModelProto, dims: Mapping[str, Any]) -> dict[str, Shape]:
    """Do it to the model's graph, in place; the shapes of its values. Inputs and outputs must have theirs.

    dims: name -> jax's symbol, all of one scope.
    """
    for _ in range(ROUNDS):
        before = [node.SerializeToString() for node in model.graph.node]
        _Look(model, dims).simplify()
        if before == [node.SerializeToString() for node in model.graph.node]:
            break
    found = _Look(model, dims)
    found.simplify(last=True)
    del model.graph.value_info[:]
    return found.shapes


class _Look:
    """One look at a graph: shapes by name, and the integers that are known, as arrays of numbers and symbols."""

    def __init__(self, model: onnx.ModelProto, dims: Mapping[str, Any]) -> None:
        self._graph, self._dims = model.graph, dims
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        tensors = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
        self._types = {name: t.elem_type for name, t in tensors.items()}
        self.shapes = {n: [self._size(d) for d in t.shape.dim] for n, t in tensors.items() if t.HasField("shape")}
        self._known: dict[str, np.ndarray] = {}
        for tensor in self._graph.initializer:
            self.shapes[tensor.name], self._types[tensor.name] = list(tensor.dims), tensor.data_type
            small = tensor.data_location != TensorProto.EXTERNAL and np.prod(tensor.dims) <= MOST
            if small and tensor.data_type in INTEGERS:
                self._known[tensor.name] = numpy_helper.to_array(tensor).astype(object)
        self._makers: dict[str, onnx.NodeProto] = {}
        self._first: dict[Any, str] = {}
        self._results = results_of(self._graph)
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes_of(self._graph):
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def simplify(self, *, last: bool = False) -> None:
        """One pass over the nodes, in order; their shapes are noted for the next inference. last: leave sizes to onnxruntime to find."""
        kept = []
        self._share_constants()
        for node in self._graph.node:
            self._compute(node)
            if self._is_constant(node):
                continue
            self._rearrange(node)
            if self._vanishes(node) or self._repeats(node):
                continue
            if last and node.op_type == "Reshape":
                self._leave_one_size(node)
            kept.append(node)
            self._makers[node.output[0]] = node
        replace(self._graph.node, _read(kept, self._results))
        replace(self._graph.value_info, filter(None, (self._noted(n) for node in kept for n in node.output)))

    def _share_constants(self) -> None:
        """One of those small ones that are the same."""
        for tensor in self._graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL and np.prod(tensor.dims) <= MOST:
                key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
                if self._first.setdefault(key, tensor.name) != tensor.name and tensor.name not in self._results:
                    self._forward(tensor.name, self._first[key])

    def _size(self, dim: Any) -> Any:
        return dim.dim_value if dim.HasField("dim_value") else self._dims.get(dim.dim_param)

    def _noted(self, name: str) -> onnx.ValueInfoProto | None:
        shape = self.shapes.get(name)
        if shape is None or None in shape or name not in self._types or name in self._results:
            return None
        sizes = [size if isinstance(size, int) else str(size) for size in shape]
        return helper.make_tensor_value_info(name, self._types[name], sizes)

    def _compute(self, node: onnx.NodeProto) -> None:
        """The integers that the node gives, and its shape where integers decide it."""
        name = node.output[0]
        given = [found for n in node.input if (found := self._known.get(n)) is not None]
        whole = len(given) == len(node.input)
        if node.op_type == "Shape" and (shape := self.shapes.get(node.input[0])) is not None:
            a = attributes_of(node)
            sizes = shape[a.get("start", 0) : a.get("end", len(shape))]
            if None not in sizes:
                self._known[name] = _array(sizes)
        elif node.op_type in OPERATIONS and self._types.get(name) in INTEGERS and whole:
            with contextlib.suppress(InconclusiveDimensionOperation, TypeError):
                content = _array(OPERATIONS[node.op_type](attributes_of(node), *given))
                if content.size <= MOST:
                    self._known[name] = content
        if node.op_type == "Range" and whole and given[2] == 1:
            self.shapes[name] = [given[1].item() - given[0].item()]
        elif node.op_type in ("Reshape", "Expand") and node.input[1] in self._known:
            old, target = self.shapes.get(node.input[0]), list(self._known[node.input[1]])
            stretched = None if old is None else _broadcast([old, target])
            shape = _reshaped(old, target) if node.op_type == "Reshape" else stretched
            if shape is not None:
                self.shapes[name] = shape

    def _rearrange(self, node: onnx.NodeProto) -> None:
        """One transposition or reshaping of what another one gave: both at once. A transposition that moves no number: a reshaping."""
        maker = self._makers.get(node.input[0]) if node.input else None
        if node.op_type == "Transpose":
            order = attributes_of(node)["perm"]
            if maker is not None and maker.op_type == "Transpose":
                before = attributes_of(maker)["perm"]
                order = [before[axis] for axis in order]
                node.CopyFrom(helper.make_node("Transpose", [maker.input[0]], node.output, name=node.name, perm=order))
            old = self.shapes.get(node.input[0])
            if old is None or None in old:
                return
            new = [old[axis] for axis in order]
            moved = [axis for axis in order if old[axis] != 1]
            if moved == sorted(moved) and sum(map(_is_symbol, new)) < 2:
                shape = self._constant(f"{node.output[0]}/shape", [-1 if _is_symbol(n) else n for n in new])
                self._known[shape] = _array(new)
                node.CopyFrom(helper.make_node("Reshape", [node.input[0], shape], node.output, name=node.name))
                self._rearrange(node)
        elif node.op_type == "Reshape" and maker is not None:
            if maker.op_type == "Reshape" and self._whole(node):
                node.input[0] = maker.input[0]
            elif maker.op_type == "MatMul":
                self._product_of_rows(node, maker)
            elif maker.op_type.startswith("Reduce"):
                self._kept(node, maker)

    def _product_of_rows(self, node: onnx.NodeProto, product: onnx.NodeProto) -> None:
        """Rows that are flattened for a product with a matrix, and reshaped back: MatMul does that by itself."""
        flat = self._makers.get(product.input[0])
        if flat is None or flat.op_type != "Reshape":
            return
        rows, matrix, out = (self.shapes.get(n) for n in (flat.input[0], product.input[1], node.output[0]))
        columns = self.shapes.get(product.input[0])
        if not (rows and matrix and out and columns and len(matrix) == len(columns) == 2) or None in rows:
            return
        if rows[-1] == columns[-1] and out == [*rows[:-1], matrix[1]]:
            given = [flat.input[0], product.input[1]]
            node.CopyFrom(helper.make_node("MatMul", given, node.output, name=node.name))

    def _kept(self, node: onnx.NodeProto, reduction: onnx.NodeProto) -> None:
        """A reduction whose axes are put back: one that keeps them."""
        a, axes = attributes_of(reduction), self._known.get(reduction.input[1]) if len(reduction.input) > 1 else None
        old, new = self.shapes.get(reduction.input[0]), self.shapes.get(node.output[0])
        if a.get("keepdims", 1) or axes is None or old is None or None in old:
            return
        gone = {int(axis) % len(old) for axis in axes}
        if new == [1 if axis in gone else size for axis, size in enumerate(old)]:
            node.CopyFrom(helper.make_node(reduction.op_type, reduction.input, node.output, name=node.name, keepdims=1))

    def _whole(self, node: onnx.NodeProto) -> bool:
        """Whether a reshaping's target copies no size of what it is given."""
        target = self._known.get(node.input[1])
        return target is not None and 0 not in target

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether the node was replaced by the numbers that it gives."""
        name = node.output[0]
        content = self._known.get(name)
        if content is None or _symbolic(content) or name in self._results:
            return False
        numbers: np.ndarray = content.astype(INTEGERS[self._types[name]])
        self._graph.initializer.append(numpy_helper.from_array(numbers, name))
        return True

    def _repeats(self, node: onnx.NodeProto) -> bool:
        """Whether the node was left out because another one gives the same: the same integers, or the same operation on the same arrays."""
        name = node.output[0]
        if len(node.output) > 1 or name in self._results or any(within(node)):
            return False
        key: Any
        if (content := self._known.get(name)) is not None:
            key = (self._types[name], content.shape, tuple(map(str, content.ravel())))
        else:
            attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
            key = (node.domain, node.op_type, tuple(node.input), tuple(attributes))
        if self._first.setdefault(key, name) == name:
            return False
        self._forward(name, self._first[key])
        return True

    def _vanishes(self, node: onnx.NodeProto) -> bool:
        """Whether the node was left out; a Reshape that stays may have another size left for onnxruntime to find."""
        if node.op_type not in ("Identity", "Transpose", "Reshape", "Expand", "Cast"):
            return False
        source, name = node.input[0], node.output[0]
        old, new = self.shapes.get(source), self.shapes.get(name)
        if node.op_type in ("Identity", "Cast"):
            same = self._types.get(source) == self._types.get(name, 0)
        elif node.op_type == "Transpose":
            same = attributes_of(node)["perm"] == sorted(attributes_of(node)["perm"])
        else:
            same = old is not None and old == new and None not in old
        same = same or (self._stretches(node, old, new) and self._needless(name, source))
        if same and name not in self._results:
            self._forward(name, source)
            return True
        return False

    def _leave_one_size(self, node: onnx.NodeProto) -> None:
        """A Reshape to a shape with one symbol: -1 in its place, so that nothing need compute it."""
        target = self._known.get(node.input[1])
        if (
            target is not None
            and sum(map(_is_symbol, target)) == 1
            and not {0, -1} & {n for n in target if not _is_symbol(n)}
        ):
            node.input[1] = self._constant(f"{node.output[0]}/shape", [-1 if _is_symbol(n) else n for n in target])

    def _constant(self, name: str, values: Sequence[int]) -> str:
        """The name of a new constant, int64."""
        self._graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _stretches(self, node: onnx.NodeProto, old: Shape | None, new: Shape | None) -> bool:
        """Whether elementwise operations do by themselves what the node does: repeat, or put sizes of 1 in front."""
        if node.op_type == "Reshape" and old is not None and new is not None:
            return new == [1] * (len(new) - len(old)) + old
        return node.op_type == "Expand"

    def _needless(self, name: str, source: str) -> bool:
        """Whether all that read an expanded array would expand it themselves, to the same."""
        for user in self._users.get(name, []):
            shapes = [self.shapes.get(source if n == name else n) for n in user.input]
            result = self.shapes.get(user.output[0])
            if user.op_type not in ELEMENTWISE or result is None or None in result or None in shapes:
                return False
            if _broadcast([s for s in shapes if s is not None]) != result:
                return False
        return True

    def _forward(self, name: str, source: str) -> None:
        """All that read `name` read `source` instead."""
        for user in self._users.pop(name, []):
            for index, one in enumerate(user.input):
                if one == name:
                    user.input[index] = source
            self._users.setdefault(source, []).append(user)


def _array(values: Any) -> np.ndarray:
    """An array of Python numbers and symbols."""
    if isinstance(values, np.ndarray):
        return values.astype(object)
    found = np.empty(len(values) if isinstance(values, list) else (), object)
    for index, value in enumerate(values if isinstance(values, list) else ()):
        found[index] = value
    if not isinstance(values, list):
        found[()] = values
    return found


def _is_symbol(value: Any) -> bool:
    return not isinstance(value, (int, np.integer, np.bool_))


def _symbolic(content: np.ndarray) -> bool:
    return any(map(_is_symbol, content.ravel()))


def _read(nodes: Sequence[onnx.NodeProto], results: set[str]) -> list[onnx.NodeProto]:
    """The nodes that anything reads."""
    used, kept = set(results), []
    for node in reversed(nodes):
        if used & set(node.output):
            used |= {name for n in _with_inner(node) for name in n.input}
            kept.append(node)
    return kept[::-1]


def _with_inner(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return nodes_of(helper.make_graph([node], "", [], []))


def _reshaped(old: Shape | None, target: Shape) -> Shape | None:
    """The shape that a Reshape gives; None where it is not known."""
    numbers = [n for n in target if not _is_symbol(n)]
    if -1 not in numbers and 0 not in numbers:
        return target
    if old is None or None in old or 0 in numbers:
        return None
    rest = math.prod(n for n in target if _is_symbol(n) or n != -1)
    size = math.prod(old) // rest
    return [size if not _is_symbol(n) and n == -1 else n for n in target] if size * rest == math.prod(old) else None


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    """As numpy does it; None where it is not known to."""
    rank = max(map(len, shapes))
    columns = zip(*([1] * (rank - len(shape)) + shape for shape in shapes), strict=True)
    return [_one([size for size in sizes if size != 1]) for sizes in columns]


def _one(sizes: Sequence[Any]) -> Any:
    if not sizes:
        return 1
    return sizes[0] if all(size is not None and size == sizes[0] for size in sizes) else None


def _axes(attributes: Mapping[str, Any], axes: np.ndarray | None) -> tuple[int, ...]:
    return tuple(int(axis) for axis in (attributes["axes"] if axes is None else axes.ravel()))


def _numbers(content: np.ndarray) -> np.ndarray:
    """The content. Raises TypeError for symbols: jax takes those for different that it does not know to be the same."""
    if _symbolic(content):
        raise TypeError("symbols")
    return content


def _quotient(attributes: Mapping[str, Any], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if (_numbers(a) < 0).any() or (_numbers(b) <= 0).any():
        raise TypeError("ONNX rounds towards zero, Python down")
    return a // b


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "Identity": lambda a, x: x,
    "Cast": lambda a, x: x,
    "Gather": lambda a, x, index: np.take(x, index.astype(np.int64), axis=a.get("axis", 0)),
    "Concat": lambda a, *parts: np.concatenate(parts, axis=a["axis"]),
    "Unsqueeze": lambda a, x, axes=None: np.expand_dims(x, _axes(a, axes)),
    "Squeeze": lambda a, x, axes=None: np.squeeze(x, None if axes is None and "axes" not in a else _axes(a, axes)),
    "Reshape": lambda a, x, shape: x.reshape([int(n) for n in shape]),
    "Expand": lambda a, x, shape: x * np.ones([int(n) for n in shape], np.int64),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": _quotient,
    "Min": lambda a, *x: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Max": lambda a, *x: np.maximum.reduce(np.broadcast_arrays(*x)),
    "Less": lambda a, x, y: x < y,
    "LessOrEqual": lambda a, x, y: x <= y,
    "Greater": lambda a, x, y: x > y,
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "Equal": lambda a, x, y: _numbers(x) == _numbers(y),
    "Where": lambda a, c, x, y: np.where(c.astype(bool), x, y),
    "ReduceProd": lambda a, x, axes=None: np.prod(x, keepdims=bool(a.get("keepdims", 1))),
    "Range": lambda a, start, limit, step: np.arange(int(start), int(limit), int(step)),
}
