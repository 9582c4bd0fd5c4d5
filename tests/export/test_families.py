"""Every family in the tree, through StableHLO in a fresh process and through onnxruntime, against the live model."""

import json
import re
from pathlib import Path

import pytest

from assay import registry
from assay.errors import ExportError
from assay_export.onnx.exporter import ONNX
from assay_export.parity import gate
from assay_export.stablehlo.exporter import StableHLO

from .conftest import FAMILIES, UNTRIED, Model, made

QUICK = ("mlp",)
DECODING = ("transformer", "gpt2", "moe", "mamba2", "lora", "with_reference")
WITHOUT_METRICS = ("bayesian_mlp", "eight_schools", "nuts")
REFUSED = {"bayesian_mlp": "random_seed", "eight_schools": "random_seed", "nuts": "Loop"}
"""Families that ONNX cannot say -> the operation in the way."""


@pytest.fixture(scope="module")
def model(family: str) -> Model:
    """One of each family for both formats: what the gate computes live is compiled once."""
    return made(family)


@pytest.fixture(scope="module", params=[f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_registered_model_is_in_a_family() -> None:
    named = {name for text in FAMILIES.values() for name in re.findall(r"@model\.(\w+)", text)}
    ours = {entry.name for entry in registry.entries("model") if entry.distribution == "assay"}
    assert ours == named | set(UNTRIED)


def test_a_family_is_the_same_in_stablehlo(family: str, model: Model, tmp_path: Path) -> None:
    assert "batch" in model.source.dims
    assert ("seq" in model.source.dims) == ("inputs" in model.source.examples)
    decodes = family in DECODING
    assert [p.name for p in model.source.programs] == ["forward", *(["prefill", "decode"] if decodes else [])]
    place = model.artifact(tmp_path / "artifact", exporter=StableHLO())
    checked = gate(place, "stablehlo", StableHLO(), model.source, model.live, examples=24)
    assert checked.problems == []
    assert checked.worst <= 2e-5
    assert {row["kind"] for row in checked.rows} == {"forward", *(("prefill", "decode", "steps") if decodes else ())}
    assert bool(checked.metrics) == (family not in WITHOUT_METRICS)


@pytest.mark.slow
def test_a_family_is_the_same_in_onnxruntime_or_refused(family: str, model: Model, tmp_path: Path) -> None:
    if family in REFUSED:
        with pytest.raises(ExportError, match=f"forward cannot be exported to ONNX: operation {REFUSED[family]}[ :]"):
            model.artifact(tmp_path / "artifact", exporter=ONNX())
        return
    place = model.artifact(tmp_path / "artifact", exporter=ONNX())
    facts = json.loads((place / "manifest.json").read_text())["formats"]["onnx"]["facts"]
    assert list(facts["programs"]) == [p.name for p in model.source.programs]
    checked = gate(place, "onnx", ONNX(), model.source, model.live, examples=24)
    assert checked.problems == []
    assert checked.worst <= 2e-5
