"""What is done to a graph after jax2onnx: weights by name, true shapes, matrix products that quantisers find, facts."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import onnx
from onnx import TensorProto, helper

from assay_export.onnx.fusions import fused
from assay_export.onnx.graphs import attributes_of, nodes_of, replace, results_of, within
from assay_export.onnx.job import NEXT, WEIGHT, Job
from assay_export.onnx.sizes import worked_out
from assay_export.onnx.stored import FILE, Weights


def finished(model: onnx.ModelProto, job: Job, weights: Weights, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model as it is written."""
    graph = model.graph
    del graph.value_info[:]  # jax2onnx's notes on shapes within the graph are wrong in places; runtimes infer their own
    _initializers(graph, weights)
    _matrix_products(graph)
    _sums_of_products(graph)
    _declare(graph, job)
    fused(graph, worked_out(model, job.sizes()), job.opset)
    _drop_unused(graph)
    model.producer_name = "assay"
    helper.set_model_props(model, {**metadata, "opset": str(job.opset)})
    return model


def in_place(model: onnx.ModelProto, job: Job) -> list[str]:
    """The donated inputs whose memory the output of the same name may take: one scatter writes into them, and nothing else reads them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for name in job.program.signature.donated:
        maker = makers.get(f"{NEXT}{name}")
        users = [n for n in nodes_of(model.graph) if name in n.input and n.op_type != "Shape"]
        if maker is not None and maker.op_type == "ScatterElements" and users == [maker] and maker.input[0] == name:
            found.append(name)
    return found


def _initializers(graph: onnx.GraphProto, weights: Weights) -> None:
    """Inputs "weights/PATH" become initializers of that name, in the file of weights; those kept in another dtype are cast."""
    used = {name for node in nodes_of(graph) for name in node.input} | results_of(graph)
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
    replace(graph.node, [*casts, *graph.node])
    replace(graph.input, [i for i in graph.input if not i.name.startswith(WEIGHT)])


def _matrix_products(graph: onnx.GraphProto) -> None:
    """Gemm without transposition as MatMul and Add: onnxruntime's quantisers look for MatMul."""
    nodes = []
    for node in graph.node:
        a = attributes_of(node)
        plain = not a.get("transA") and not a.get("transB") and a.get("alpha", 1.0) == 1.0
        if node.op_type != "Gemm" or not plain or a.get("beta", 1.0) not in (0.0, 1.0):
            nodes.append(node)
            continue
        bias = node.input[2] if len(node.input) > 2 and a.get("beta", 1.0) else ""
        product = f"{node.output[0]}/product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", node.input[:2], [product], name=node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, bias], node.output, name=f"{node.name}/bias"))
    replace(graph.node, nodes)


def _sums_of_products(graph: onnx.GraphProto) -> None:
    """Einsum of two arrays as MatMul, where it is one but for the order of the dimensions: onnxruntime is slow at Einsum."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        found = _as_product(node) if node.op_type == "Einsum" and len(node.input) == 2 else None
        nodes.extend([node] if found is None else found)
    replace(graph.node, nodes)


def _as_product(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Einsum as two transpositions, a product and a transposition back; None unless each operand has one dimension of its own."""
    equation = attributes_of(node)["equation"].decode()
    left, right, result = equation.replace(" ", "").replace("->", ",").split(",")
    batch = [x for x in result if x in left and x in right]
    own = [x for x in left if x not in right], [x for x in right if x not in left]
    summed = [x for x in left if x in right and x not in result]
    single = len(summed) == len(own[0]) == len(own[1]) == 1
    if (
        not single
        or sorted(result) != sorted([*batch, *own[0], *own[1]])
        or len(set(left)) + len(set(right)) != len(left + right)
    ):
        return None
    name = node.output[0]
    orders = [*batch, *own[0], *summed], [*batch, *summed, *own[1]]
    given: list[str] = []
    steps = []
    for side, letters, order in zip(node.input, (left, right), orders, strict=True):
        given.append(f"{name}/{len(given)}")
        steps.append(helper.make_node("Transpose", [side], given[-1:], perm=[letters.index(x) for x in order]))
    product = [*batch, *own[0], *own[1]]
    back = [product.index(x) for x in result]
    return [
        *steps,
        helper.make_node("MatMul", given, [f"{name}/product"], name=node.name),
        helper.make_node("Transpose", [f"{name}/product"], [name], perm=back),
    ]


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
    used = {name for node in nodes_of(graph) for name in node.input} | results_of(graph)
    replace(graph.initializer, [i for i in graph.initializer if i.name in used])
    for node in graph.node:
        for inner in within(node):
            _drop_unused(inner)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in nodes_of(graph):
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _type(dtype: str) -> int:
    """ONNX's number of a dtype."""
    return int(helper.np_dtype_to_tensor_dtype(jnp.dtype(dtype)))
