"""What is done to a graph after jax2onnx: weights by name, true shapes, matrix products that quantisers find, facts."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import onnx
from onnx import TensorProto, helper

from assay_export.onnx.job import WEIGHT, Job
from assay_export.onnx.stored import FILE, Weights


def finished(model: onnx.ModelProto, job: Job, weights: Weights, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model as it is written."""
    graph = model.graph
    del graph.value_info[:]  # jax2onnx's notes on shapes within the graph are wrong in places; runtimes infer their own
    _initializers(graph, weights)
    _matrix_products(graph)
    _declare(graph, job)
    _drop_unused(graph)
    model.producer_name = "assay"
    helper.set_model_props(model, {**metadata, "opset": str(job.opset)})
    return model


def _initializers(graph: onnx.GraphProto, weights: Weights) -> None:
    """Inputs "weights/PATH" become initializers of that name, in the file of weights; those kept in another dtype are cast."""
    used = {name for node in _nodes(graph) for name in node.input} | _results(graph)
    names = [i.name for i in graph.input if i.name.startswith(WEIGHT)]
    casts = []
    for name in [n for n in names if n in used]:
        shape, taken = weights.shapes[name.removeprefix(WEIGHT)]
        dtype, offset, size = weights.stored[name.removeprefix(WEIGHT)]
        tensor = graph.initializer.add(name=name, data_type=_type(dtype), data_location=TensorProto.EXTERNAL)
        tensor.dims.extend(shape)
        for key, value in (("location", FILE), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        if dtype != taken:
            _rename(graph, name, f"{name}/{taken}")
            casts.append(helper.make_node("Cast", [name], [f"{name}/{taken}"], to=_type(taken)))
    _replace(graph.node, [*casts, *graph.node])
    _replace(graph.input, [i for i in graph.input if not i.name.startswith(WEIGHT)])


def _matrix_products(graph: onnx.GraphProto) -> None:
    """Gemm without transposition as MatMul and Add: onnxruntime's quantisers look for MatMul."""
    nodes = []
    for node in graph.node:
        a = {x.name: helper.get_attribute_value(x) for x in node.attribute}
        plain = not a.get("transA") and not a.get("transB") and a.get("alpha", 1.0) == 1.0
        if node.op_type != "Gemm" or not plain or a.get("beta", 1.0) not in (0.0, 1.0):
            nodes.append(node)
            continue
        bias = node.input[2] if len(node.input) > 2 and a.get("beta", 1.0) else ""
        product = f"{node.output[0]}/product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", node.input[:2], [product], name=node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, bias], node.output, name=f"{node.name}/bias"))
    _replace(graph.node, nodes)


def _declare(graph: onnx.GraphProto, job: Job) -> None:
    """Inputs as the signature has them, outputs as jax traces them; sizes that follow from others as expressions."""
    arguments = job.arguments()
    shapes = dict(zip(job.input_names(), arguments, strict=True))
    rest = [name for name in job.program.signature.inputs if name not in {i.name for i in graph.input}]
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in rest)  # inputs that nothing reads
    for value in graph.input:
        _set(value, shapes[value.name])
    for value, shape in zip(graph.output, jax.eval_shape(job.flat, *arguments), strict=True):
        _set(value, shape)


def _set(value: onnx.ValueInfoProto, shape: jax.ShapeDtypeStruct) -> None:
    sizes = [size if isinstance(size, int) else str(size) for size in shape.shape]
    value.type.CopyFrom(helper.make_tensor_type_proto(_type(jnp.dtype(shape.dtype).name), sizes))


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Initializers that nothing reads, also of the graphs within."""
    used = {name for node in _nodes(graph) for name in node.input} | _results(graph)
    _replace(graph.initializer, [i for i in graph.initializer if i.name in used])
    for node in graph.node:
        for inner in _within(node):
            _drop_unused(inner)


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those of the graph and of the graphs within."""
    return [n for node in graph.node for n in (node, *(m for inner in _within(node) for m in _nodes(inner)))]


def _results(graph: onnx.GraphProto) -> set[str]:
    """The names of what the graph, and those within, give."""
    inner = (_results(g) for node in graph.node for g in _within(node))
    return {o.name for o in graph.output}.union(*inner)


def _within(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of a loop or a condition."""
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in _nodes(graph):
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _replace(field, items) -> None:  # type: ignore[no-untyped-def]  # protobuf's repeated fields have no public type
    kept = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(kept)


def _type(dtype: str) -> int:
    """ONNX's number of a dtype."""
    return int(helper.np_dtype_to_tensor_dtype(jnp.dtype(dtype)))
