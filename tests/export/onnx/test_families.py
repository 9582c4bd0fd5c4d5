"""Every family in the tree as ONNX: the gate, greedy decoding, and an environment with nothing but onnxruntime."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest

from assay.errors import ExportError
from assay.testing import ExporterKit
from assay_export import artifact
from assay_export.onnx.exporter import ONNX
from assay_export.parity import gate
from assay_export.runners import Process, opened

from ..conftest import FAMILIES, Model, made

ROOT = Path(__file__).parents[3]
REFUSED = {"bayesian_mlp": "random_seed"}
"""Families that ONNX cannot say -> the operation in the way."""


@pytest.mark.slow
class TestONNX(ExporterKit):
    format = "onnx"

    def plugin(self) -> ONNX:
        return ONNX()


def written(model: Model, directory: Path, exporter: ONNX | None = None) -> Path:
    directory.mkdir()
    artifact.fill(directory, model.source, {"onnx": exporter or ONNX()}, {"tokenizer": None})
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REFUSED])
def test_a_family_is_the_same_in_onnxruntime(family: str, tmp_path: Path) -> None:
    model = made(family)
    place = written(model, tmp_path / "artifact")
    facts = json.loads((place / "manifest.json").read_text())["formats"]["onnx"]["facts"]
    assert list(facts["programs"]) == [p.name for p in model.source.programs]
    checked = gate(place, "onnx", ONNX(), model.source, model.live, examples=24)
    assert checked.problems == []
    assert checked.worst <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("family", "operation"), REFUSED.items())
def test_the_others_are_refused_with_the_operation(family: str, operation: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"forward cannot be exported to ONNX: operation {operation} "):
        written(made(family), tmp_path / "artifact")


@pytest.mark.slow
def test_128_greedy_tokens_with_a_cache_are_those_of_the_full_forward(tmp_path: Path) -> None:
    model = made("transformer", max_length=160)
    runner = opened(written(model, tmp_path / "artifact"), "onnx", ONNX())
    inputs = model.source.program("prefill").signature.inputs
    prompt = np.random.default_rng(0).integers(0, 256, (1, 9)).astype(np.int32)
    cache = {n: np.zeros(t.at({"batch": 1, "cache": 160}), np.float32) for n, t in inputs.items() if n != "inputs"}
    found = runner("prefill", {"inputs": prompt, **cache})
    tokens = [*prompt[0], int(found["output"][0, -1].argmax())]
    for position in range(len(prompt[0]), len(prompt[0]) + 127):
        cache = {name: found[name] for name in cache}
        last = np.array([[tokens[-1]]], np.int32)
        found = runner("decode", {"inputs": last, "position": np.int32(position), **cache})
        tokens.append(int(found["output"][0, -1].argmax()))
    forward = jax.jit(model.source.program("forward").function)
    logits = np.asarray(forward(dict(model.source.weights), {"inputs": np.array([tokens[:-1]], np.int32)})["output"])
    assert tokens[9:] == logits[0, 8:].argmax(-1).tolist()
    assert len(tokens[9:]) == 128


@pytest.mark.slow
def test_it_runs_where_there_is_only_onnxruntime(tmp_path: Path) -> None:
    place = written(made("mlp"), tmp_path / "artifact")
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
    model = made("mlp")
    inputs = dict(model.source.examples)
    expected = jax.jit(model.source.program("forward").function)(dict(model.source.weights), inputs)["output"]
    with Process(place, "onnx", ONNX(), python=str(python)) as run:
        found = run("forward", inputs)["output"]
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "stored"), [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_other_dtypes_keep_their_bounds(dtype: str, stored: str, tmp_path: Path) -> None:
    model = made("transformer", max_batch=2, max_length=5)
    place = written(model, tmp_path / "artifact", ONNX(dtype=dtype))
    graph = onnx.load_model(place / "onnx" / "forward.onnx", load_external_data=False).graph
    external = [i for i in graph.initializer if i.name.startswith("weights/")]
    assert {onnx.TensorProto.DataType.Name(i.data_type) for i in external} == {stored}
    runner = opened(place, "onnx", ONNX())
    tokens = np.arange(5, dtype=np.int32)[None]
    expected = np.asarray(
        jax.jit(model.source.program("forward").function)(dict(model.source.weights), {"inputs": tokens})["output"]
    )
    found = runner("forward", {"inputs": tokens})["output"].astype(np.float32)
    assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < 2e-2
