"""The wrapper's parts: what it rewrites, what it checks, what it does to graphs, and what it says where it cannot."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import lax
from onnx import helper

from assay.errors import ExportError
from assay.exported import Dim, Program, Signature, Tensor
from assay_export.onnx import passes, stored
from assay_export.onnx.check import Wrong, _fitting, check, compare
from assay_export.onnx.convert import Converted, convert
from assay_export.onnx.converter import Converter
from assay_export.onnx.dtypes import in_dtype
from assay_export.onnx.exporter import ONNX
from assay_export.onnx.job import Job
from assay_export.onnx.rewrite import Unsupported, rewritten

from ..conftest import Model

X = Tensor(("batch", 4), "float32")
DIMS = {"batch": Dim(1, 6)}


def program(function, **inputs: Tensor) -> Program:
    return Program("small", function, Signature(inputs or {"x": X}, {}))


def test_large_outputs_are_checked_with_a_smaller_batch() -> None:
    job = Job(
        program(lambda w, inputs: {"y": inputs["x"][:, :, None] * jnp.ones((1, 1, 1 << 24))}), DIMS, {}, ("y",), 23
    )
    assert _fitting(job, {"batch": 6}) == {"batch": 1}
    assert _fitting(Job(program(lambda w, inputs: inputs), DIMS, {}, ("x",), 23), {"batch": 6}) == {"batch": 6}


def switch(x):
    return lax.switch(2, [jnp.sin, jnp.cos, jnp.tan, jnp.exp], x)


def pool(x):
    return lax.reduce_window(x[None, :, :, None], -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), "SAME")


def average(x):
    return lax.reduce_window(x[None, :, :, None], 0.0, lax.add, (1, 2, 3, 1), (1, 1, 2, 1), "VALID")


def interior(x):
    return lax.pad(x, 7.0, ((1, 2, 2), (-1, 1, 0)))


def grouped(x):
    sizes = jnp.array([2, 0, 3], jnp.int32)
    return lax.ragged_dot(x, jnp.arange(24.0).reshape(3, 4, 2), sizes)


def shifts(x):
    i = (x * 100).astype(jnp.int32)
    return (i >> 2) + (i << 1) + lax.rem(i, 7)


def rows(x):
    index = jnp.array([[0, 1, 1], [3, 2, 4], [0, 0, 0], [1, 9, 3], [2, 2, 2], [3, 1, 0]])  # 4 and 9 are dropped
    return jax.vmap(lambda row, i: row.at[i].add(row[:3]).at[i].max(1.5))(x, index)


def outside(x):
    index = jnp.array([0, 5, 6, -7, 2])
    filled = x.at[index].get(mode="fill", fill_value=3.0)
    return filled + x.at[index].get(mode="clip") + jnp.nan_to_num(x[index, index], nan=9.0)[:, None]


def masks(x):
    return jnp.where(x > 0, x > 1, x < -1)


@pytest.mark.parametrize("function", [switch, pool, average, interior, grouped, shifts, rows, outside, masks])
def test_rewriting_changes_no_number(function) -> None:
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    (found,) = rewritten(jax.make_jaxpr(function)(x))(x)
    np.testing.assert_allclose(found, function(jnp.asarray(x)), rtol=1e-6, atol=1e-6)


def test_sorting_along_a_dynamic_axis_is_by_rank() -> None:
    (n,) = jax.export.symbolic_shape("n")
    function = rewritten(jax.make_jaxpr(lambda x: jnp.argsort(x, 0))(jax.ShapeDtypeStruct((n, 3), jnp.float32)))
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((n, 3), jnp.float32))
    assert "sort" not in {e.primitive.name for e in closed.jaxpr.eqns}
    exported = jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct((n, 3), jnp.float32))
    x = np.array([[2, 1, np.nan], [1, 1, 0], [1, 3, -np.inf], [np.nan, 1, 2]], np.float32)
    np.testing.assert_array_equal(exported.call(x)[0], np.argsort(x, 0, kind="stable"))


def test_random_numbers_are_refused_with_operation_and_line() -> None:
    closed = jax.make_jaxpr(lambda x: x + jax.random.normal(jax.random.key(0), (4,)))(np.zeros(4, np.float32))
    with pytest.raises(Unsupported, match=r"operation random_\w+ \(.*test_onnx.*draw them outside"):
        rewritten(closed)(np.zeros(4, np.float32))


def test_arithmetic_is_in_the_dtype_that_is_asked_for() -> None:
    def function(weights, inputs):
        return {"y": lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ weights["w"]), inputs["x"]) - 1e30}

    half = in_dtype(program(function, x=Tensor((3, 4), "bfloat16")), {"w": "bfloat16"}, "float16")
    assert half.signature.inputs["x"].dtype == "float16"
    x, w = np.ones((3, 4), np.float16), np.eye(4, dtype=np.float16)
    found = half.function({"w": w}, {"x": x})["y"]
    assert found.dtype == jnp.float16
    assert np.isfinite(found).all()
    text = str(jax.make_jaxpr(half.function)({"w": w}, {"x": x}))
    assert "bf16" not in text
    same = program(function, x=Tensor((3, 4), "float32"))
    assert in_dtype(same, {"w": "float32"}, "float32") is same


def graph(nodes: list[onnx.NodeProto], output: list[int | str], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, output)
    held = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "small", [x], [y], held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def checked(model: onnx.ModelProto, function, directory: Path) -> float:
    onnx.save_model(model, directory / "small.onnx")
    job = Job(program(lambda w, inputs: {"y": function(inputs["x"])}), DIMS, {}, ("y",), 23)
    return check(directory / "small.onnx", job, {}, 2e-5)


def test_a_graph_that_is_right_at_one_size_only_is_wrong(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "half"], ["y"]),
    ]
    constants = {"axes": np.array([0]), "half": np.float32(1 / 6)}
    model = graph(nodes, [4], constants)
    with pytest.raises(Wrong, match=r"output y at \{'batch': 1\} is off by"):
        checked(model, lambda x: x.mean(0), tmp_path)
    assert checked(model, lambda x: x.sum(0) / 6, tmp_path) < 1e-6


def test_a_graph_that_declares_another_shape_is_wrong(tmp_path: Path) -> None:
    model = graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], ["batch", 4], {})
    with pytest.raises(Wrong, match=r"is declared \['batch', 4\], and has the shape \[2, 4\]"):
        checked(model, lambda x: jnp.concatenate([x, x]), tmp_path)


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (np.zeros((2, 3), np.float32), r"float32\[2, 3\], and must be float32\[3, 2\]"),
        (np.zeros((3, 2)), "float64"),
        (np.full((3, 2), np.nan, np.float32), "not a number"),
    ],
)
def test_other_shapes_dtypes_and_nans_are_wrong(got: np.ndarray, reason: str) -> None:
    with pytest.raises(Wrong, match=reason):
        compare(got, np.ones((3, 2), np.float32))
    assert compare(np.array([1.0, np.inf]), np.array([1.0, np.inf])) == 0.0
    assert compare(np.array([1.0, np.inf]), np.array([1.0, 2.0])) == np.inf


def test_quantisers_find_matrix_products() -> None:
    w, b = np.eye(4, dtype=np.float32), np.ones(4, np.float32)
    gemms = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "plain"),
        helper.make_node("Gemm", ["h", "w", "b"], ["g"], "unbiased", beta=0.0),
        helper.make_node("Gemm", ["g", "w"], ["y"], "transposed", transB=1),
    ]
    model = graph(gemms, ["batch", 4], {"w": w, "b": b})
    passes._matrix_products(model.graph)
    assert [n.op_type for n in model.graph.node] == ["MatMul", "Add", "MatMul", "Gemm"]
    onnx.checker.check_model(model, full_check=True)


def test_weights_lie_in_one_file_by_name(tmp_path: Path) -> None:
    values = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([1, 2], np.int32)}
    found = stored.write(values, tmp_path, computed="float32", kept="bfloat16")
    assert found.stored == {"a/kernel": ("bfloat16", 0, 12), "n": ("int32", stored.ALIGNED, 8)}
    arrays = found.arrays()
    assert arrays["a/kernel"].dtype == np.float32
    assert all((arrays[path] == values[path]).all() for path in values)


def test_a_program_becomes_a_file_that_says_what_it_is(converter: Converter, tmp_path: Path) -> None:
    def function(weights, inputs):
        return {"x": jnp.tanh(inputs["x"] @ weights["dense/kernel"] + weights["dense/bias"][None])}

    values = {"dense/kernel": np.eye(4, dtype=np.float32), "dense/bias": np.ones(4, np.float32)}
    weights = stored.write(values, tmp_path, computed="float32", kept="float32")
    settings = {"converter": converter, "opset": 23, "tolerance": 2e-5, "metadata": {"assay.run": "some-run"}}
    found = convert(program(function), DIMS, weights, tmp_path, **settings)
    assert found.route == "plain"
    assert found.outputs == {"next/x": "x"}
    model = onnx.load_model(tmp_path / "small.onnx", load_external_data=False)
    assert {i.name for i in model.graph.initializer} >= {"weights/dense/kernel", "weights/dense/bias"}
    assert [i.name for i in model.graph.input] == ["x"]
    assert {p.key: p.value for p in model.metadata_props} == {"assay.run": "some-run", "opset": "23"}
    assert [o.version for o in model.opset_import if not o.domain] == [23]

    def python(weights, inputs):
        return {"y": jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4,), jnp.float32), inputs["x"])}

    fixed = {"x": Tensor((4,), "float32")}
    refused = dataclasses.replace(program(python), signature=Signature(fixed, {}), name="refused")
    with pytest.raises(ExportError, match="refused cannot be exported to ONNX: operation pure_callback"):
        convert(refused, {}, weights, tmp_path, **settings)
    assert not (tmp_path / "refused.onnx").exists()


@pytest.mark.parametrize("refused", ["prefill", "decode"])
def test_prefill_and_decode_are_written_both_or_not_at_all(
    refused: str, decoder: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def converted(program: Program, dims: Any, weights: Any, directory: Path, **settings: Any) -> Converted:
        if program.name == refused:
            raise ExportError(f"{refused} cannot be exported to ONNX")
        (directory / f"{program.name}.onnx").touch()
        return Converted("plain", 0.0, {}, ())

    monkeypatch.setattr("assay_export.onnx.convert.convert", converted)
    written = ONNX().write(decoder.source, tmp_path)
    assert written.programs == ("forward",)
    assert written.notes == (f"prefill and decode are left out: {refused} cannot be exported to ONNX",)
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["forward.onnx"]


def test_a_python_without_the_converter_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASSAY_ONNX_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ExportError, match=r"cannot be run: No such file.*pip install --no-deps jax2onnx"):
        Converter()
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'jax2onnx'\" >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("ASSAY_ONNX_PYTHON", str(script))
    with pytest.raises(ExportError, match="exporting to ONNX needs jax2onnx: `pip install"):
        Converter()


def test_opsets_that_there_are_not_and_old_ones_are_refused(decoder: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset = 99: the onnx that is installed knows those up to"):
        ONNX(opset=99).write(decoder.source, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="opset = 17: must be at least 18"):
        ONNX(opset=17)
