"""What is worked out and put together at export changes no number; and a cache is written where it lies."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export, lax
from onnx import TensorProto, helper, numpy_helper

from assay.exported import Dim, Program, Signature, Tensor
from assay_export.onnx import loader, passes, stored
from assay_export.onnx.convert import Converted, convert
from assay_export.onnx.converter import Converter
from assay_export.onnx.fusions import fused
from assay_export.onnx.sizes import worked_out

SIZES = ((1, 3), (2, 1), (5, 4))


def constant(name: str, value: Any, dtype: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model(nodes: Sequence[Any], constants: Sequence[onnx.TensorProto], output: Sequence[Any]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    graph = helper.make_graph([helper.make_node(*n[:3], **n[3]) for n in nodes], "g", [x], [y], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def simplified(before: onnx.ModelProto) -> list[str]:
    """The operations that are left; the numbers must be those of before, at several sizes."""
    after = onnx.ModelProto.FromString(before.SerializeToString())
    a, b = export.symbolic_shape("a, b", constraints=["a >= 1", "b >= 1", "a <= 8", "b <= 8"])
    shapes = worked_out(after, {"a": a, "b": b})
    fused(after.graph, shapes, 23)
    onnx.checker.check_model(after, full_check=True)
    run = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (before, after)
    ]
    for sizes in SIZES:
        x = np.random.default_rng(0).normal(size=(*sizes, 4)).astype(np.float32)
        expected, found = (session.run(None, {"x": x})[0] for session in run)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    return [node.op_type for node in after.graph.node]


def test_sizes_that_follow_from_inputs_are_not_computed() -> None:
    nodes = [
        ("Shape", ["x"], ["s"], {}),
        ("Gather", ["s", "zero"], ["a"], {"axis": 0}),
        ("Gather", ["s", "one"], ["b"], {"axis": 0}),
        ("Mul", ["b", "four"], ["columns"], {}),
        ("Sub", ["columns", "four"], ["fewer"], {}),
        ("Add", ["fewer", "four"], ["again"], {}),
        ("Unsqueeze", ["a", "first"], ["rows"], {}),
        ("Unsqueeze", ["again", "first"], ["width"], {}),
        ("Concat", ["rows", "width"], ["flat"], {"axis": 0}),
        ("Reshape", ["x", "flat"], ["f"], {}),
        ("Reshape", ["f", "s"], ["back"], {}),
        ("Sin", ["back"], ["y"], {}),
    ]
    constants = [constant("zero", 0), constant("one", 1), constant("four", 4), constant("first", [0])]
    assert simplified(model(nodes, constants, ["a", "b", 4])) == ["Sin"]


def test_an_expansion_stays_where_its_shape_is_read() -> None:
    nodes = [
        ("Shape", ["x"], ["s"], {}),
        ("Expand", ["half", "s"], ["wide"], {}),
        ("Expand", ["half", "s"], ["wide again"], {}),
        ("Add", ["x", "wide"], ["sum"], {}),
        ("ReduceSum", ["wide again"], ["total"], {"keepdims": 0}),
        ("Mul", ["sum", "total"], ["y"], {}),
    ]
    kept = simplified(model(nodes, [constant("half", 0.5, np.float32)], ["a", "b", 4]))
    assert kept.count("Expand") == 1
    without = [*(n for n in nodes[:-1] if n[0] != "ReduceSum"), ("Mul", ["sum", "wide again"], ["y"], {})]
    assert simplified(model(without, [constant("half", 0.5, np.float32)], ["a", "b", 4])) == ["Add", "Mul"]


def test_whether_a_size_is_a_number_is_found_when_it_runs() -> None:
    nodes = [
        ("Shape", ["x"], ["s"], {"start": 0, "end": 1}),
        ("Equal", ["s", "one"], ["single"], {}),
        ("Cast", ["single"], ["number"], {"to": TensorProto.FLOAT}),
        ("Add", ["x", "number"], ["y"], {}),
    ]
    assert "Equal" in simplified(model(nodes, [constant("one", [1])], ["a", "b", 4]))


def softmax(**changed: Any) -> list[Any]:
    of = changed.get("of", "x")
    return [
        ("ReduceMax", [of, "axis"], ["most"], {"keepdims": 1}),
        ("Sub", ["x", "most"], ["shifted"], {}),
        ("Exp", ["shifted"], ["e"], {}),
        ("ReduceSum", ["e", changed.get("axis", "axis")], ["total"], {"keepdims": 1}),
        ("Div", ["e", "total"], ["y"], {}),
    ]


def test_softmax_is_one_node() -> None:
    constants = [constant("axis", [2]), constant("other", [1])]
    assert simplified(model(softmax(), constants, ["a", "b", 4])) == ["Softmax"]
    assert "Softmax" not in simplified(model(softmax(axis="other"), constants, ["a", "b", 4]))
    negative = [("Neg", ["x"], ["z"], {}), *softmax(of="z")]
    assert "Softmax" not in simplified(model(negative, constants, ["a", "b", 4]))


@pytest.mark.parametrize(("width", "one", "fuses"), [(4.0, 1.0, True), (5.0, 1.0, False), (4.0, 2.0, False)])
def test_rms_norm_is_one_node(width: float, one: float, fuses: bool) -> None:
    nodes = [
        ("ReduceSumSquare", ["x", "axis"], ["squares"], {"keepdims": 1}),
        ("Div", ["squares", "width"], ["mean"], {}),
        ("Add", ["mean", "epsilon"], ["sum"], {}),
        ("Sqrt", ["sum"], ["root"], {}),
        ("Div", ["one", "root"], ["factor"], {}),
        ("Mul", ["x", "factor"], ["unit"], {}),
        ("Mul", ["unit", "scale"], ["y"], {}),
    ]
    numbers = {"width": width, "epsilon": 0.1, "one": one, "scale": [1.0, 2.0, 3.0, 4.0]}
    constants = [constant("axis", [2]), *(constant(n, x, np.float32) for n, x in numbers.items())]
    assert (simplified(model(nodes, constants, ["a", "b", 4])) == ["RMSNormalization"]) == fuses


def test_einsum_of_two_arrays_is_a_product() -> None:
    for equation, second in (("zyab,zcyb->zyac", (2, 7, 3, 5)), ("zyab,zbyc->zcya", (2, 5, 3, 7))):
        inputs = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("p", (2, 3, 4, 5)), ("q", second))
        ]
        node = helper.make_node("Einsum", ["p", "q"], ["y"], equation=equation)
        graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        passes._sums_of_products(graph)
        assert "Einsum" not in [n.op_type for n in graph.node]
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
        rng = np.random.default_rng(0)
        arrays = {"p": rng.normal(size=(2, 3, 4, 5)).astype("f"), "q": rng.normal(size=second).astype("f")}
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(
            session.run(None, arrays)[0], np.einsum(equation, *arrays.values()), rtol=1e-5, atol=1e-5
        )
    node = helper.make_node("Einsum", ["p", "q"], ["y"], equation="ab,bcd->acd")
    assert passes._as_product(node) is None


def step(weights: Any, inputs: Any) -> dict[str, Any]:
    cache = lax.dynamic_update_slice_in_dim(inputs["cache/0"], inputs["x"], inputs["position"], axis=1)
    return {"output": cache.sum(1), "cache/0": cache}


def step_that_looks_back(weights: Any, inputs: Any) -> dict[str, Any]:
    found = step(weights, inputs)
    return {**found, "output": found["output"] + inputs["cache/0"].sum(1)}


def loaded(function: Any, place: Path, converter: Converter) -> tuple[Any, Converted]:
    """(the program as an artifact's loader has it, how it was converted)."""
    tensors = {"x": Tensor(("batch", 1, 3), "float32"), "cache/0": Tensor(("batch", "cache", 3), "float32")}
    inputs = {**tensors, "position": Tensor((), "int32", "cache")}
    program = Program("decode", function, Signature(inputs, {}, ("cache/0",)))
    (place / "onnx").mkdir()
    weights = stored.write({}, place / "onnx", computed="float32", kept="float32")
    dims = {"batch": Dim(1, 3), "cache": Dim(1, 6)}
    found = convert(
        program, dims, weights, place / "onnx", converter=converter, opset=23, tolerance=1e-6, metadata={}
    )  # fmt: skip
    return loader.load(place, {}, {"programs": {"decode": dataclasses.asdict(found)}}), found


def test_a_cache_is_written_where_it_lies(converter: Converter, tmp_path: Path) -> None:
    call, converted = loaded(step, tmp_path, converter)
    assert converted.in_place == ["cache/0"]
    rng = np.random.default_rng(0)
    cache = rng.normal(size=(2, 5, 3)).astype(np.float32)
    expected = jnp.asarray(cache)
    for position in (3, 0, 4, 7):  # the last one is beyond the end, and jax writes where it fits
        x = rng.normal(size=(2, 1, 3)).astype(np.float32)
        want = jax.jit(step)({}, {"x": x, "cache/0": expected, "position": np.int32(position)})
        found = call("decode", {"x": x, "cache/0": cache, "position": np.int32(position)})
        assert found["cache/0"] is cache
        np.testing.assert_allclose(found["output"], want["output"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(cache, want["cache/0"])
        expected = want["cache/0"]
    nodes = [n.op_type for n in onnx.load_model(tmp_path / "onnx/decode.onnx").graph.node]
    assert nodes.count("ScatterElements") == 1
    kept = cache.copy()
    kept.setflags(write=False)  # memory that may not be written is copied
    found = call("decode", {"x": x, "cache/0": kept, "position": np.int32(1)})
    np.testing.assert_array_equal(kept, cache)
    np.testing.assert_array_equal(found["cache/0"][:, 1], x[:, 0])


def test_a_cache_that_is_read_besides_is_not_written_over(converter: Converter, tmp_path: Path) -> None:
    call, converted = loaded(step_that_looks_back, tmp_path, converter)
    assert converted.in_place == []
    cache, x = np.ones((1, 4, 3), np.float32), np.full((1, 1, 3), 5, np.float32)
    found = call("decode", {"x": x, "cache/0": cache, "position": np.int32(2)})
    np.testing.assert_array_equal(cache, 1)
    np.testing.assert_allclose(found["output"], 3 + 5 + 4)
