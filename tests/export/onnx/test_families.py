"""The ONNX exporter's kit, other dtypes, and an environment with nothing but onnxruntime."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest

from assay.testing import ExporterKit
from assay_export.onnx.exporter import ONNX
from assay_export.runners import Process, opened

from ..conftest import Model, made

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
class TestONNX(ExporterKit):
    format = "onnx"

    def plugin(self) -> ONNX:
        return ONNX()


@pytest.mark.slow
def test_it_runs_where_there_is_only_onnxruntime(tmp_path: Path) -> None:
    model = made("mlp")
    place = model.artifact(tmp_path / "artifact", exporter=ONNX())
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "clean"], check=True)
    python = tmp_path / "clean/bin/python"
    locked = [
        line.split()[0]
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line.startswith("onnxruntime==")
    ]
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, *locked, f"numpy=={np.__version__}"], check=True)
    for absent in ("jax", "assay", "onnx"):
        assert subprocess.run([python, "-I", "-c", f"import {absent}"], capture_output=True).returncode == 1
    inputs = dict(model.source.examples)
    expected = jax.jit(model.source.program("forward").function)(dict(model.source.weights), inputs)["output"]
    with Process(place, "onnx", ONNX(), python=str(python)) as run:
        found = run("forward", inputs)["output"]
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "stored"), [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_other_dtypes_keep_their_bounds(decoder: Model, dtype: str, stored: str, tmp_path: Path) -> None:
    source = dataclasses.replace(decoder.source, programs=[decoder.source.program("forward")])
    place = decoder.artifact(tmp_path / "artifact", source, ONNX(dtype=dtype))
    graph = onnx.load_model(place / "onnx" / "forward.onnx", load_external_data=False).graph
    external = [i for i in graph.initializer if i.name.startswith("weights/")]
    assert {onnx.TensorProto.DataType.Name(i.data_type) for i in external} == {stored}
    runner = opened(place, "onnx", ONNX())
    tokens = np.arange(5, dtype=np.int32)[None]
    expected = np.asarray(
        jax.jit(source.program("forward").function)(dict(source.weights), {"inputs": tokens})["output"]
    )
    found = runner("forward", {"inputs": tokens})["output"].astype(np.float32)
    assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < 2e-2
