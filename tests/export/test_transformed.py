"""`assay export --transform` and `--to hf`: the gate holds what was transformed, and what is written is what is said."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from assay import config, registry
from assay.cli import main
from assay.train.launch import start
from assay_export.stablehlo.exporter import StableHLO
from assay_export.transforms.int8 import Int8
from assay_export.transforms.lora_merge import LoRAMerge
from assay_export.transforms.prune import Prune
from assay_plugins.exporters.hf import HF
from assay_plugins.importers.hf import HF as Importer

from .conftest import CLASSES, COMMON, model

VIT = "model.vit.layers = 1\nmodel.vit.width = 16\nmodel.vit.heads = 2\nmodel.vit.patch = 4\n"
EXPERIMENT = CLASSES + model("lora", "model = @model.vit()", "rank = 2", "alpha = 64.0") + VIT + COMMON
PLUGINS = {
    "exporter": {"stablehlo": StableHLO, "hf": HF},
    "transform": {"int8": Int8, "prune": Prune, "lora_merge": LoRAMerge},
}


@pytest.fixture(autouse=True)
def plugins() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind, found in PLUGINS.items():
            for name, plugin in found.items():
                stack.enter_context(registry.temporary(kind, name, plugin))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    start(config.load_text(EXPERIMENT, "adapters.gin"), root)
    return root


def export(runs: Path, out: Path, *words: str) -> int:
    limits = ("--max-batch", "2", "--examples", "64")
    return main(["export", "latest", "--root", str(runs), "--out", str(out), *limits, *words])


def test_a_transformed_artifact_computes_with_transformed_weights(runs: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert export(runs, out, "--transform", "lora_merge", "--transform", "int8(skip=['head'])") == 0
    said = capsys.readouterr().out
    assert "lora_merge: " in said
    assert "int8(skip=['head']): loss " in said
    content = json.loads((out / "manifest.json").read_text())
    assert content["status"] == "verified"
    assert [effect["transform"] for effect in content["transforms"]] == ["lora_merge", "int8(skip=['head'])"]
    assert content["transforms"][0]["outputs"]["norm"] < 1e-5
    assert 1e-4 < content["transforms"][1]["outputs"]["norm"] < 0.1
    stored = load_file(out / "weights" / "model.safetensors")
    assert stored["blocks/0/attention/query/kernel/values"].dtype == np.int8
    assert stored["head/kernel"].dtype == np.float32
    assert not any("adapters" in path for path in stored)
    assert main(["artifact", "verify", str(out)]) == 0

    # An artifact can be transformed again, without its run.
    capsys.readouterr()
    words = ["artifact", "refresh", str(out), "--transform", "prune(sparsity=0.5)", "--out", str(tmp_path / "pruned")]
    assert main(words) == 0
    assert "prune(sparsity=0.5): " in capsys.readouterr().out
    pruned = json.loads((tmp_path / "pruned" / "manifest.json").read_text())
    assert pruned["status"] == "verified"
    assert [effect["transform"] for effect in pruned["transforms"]][2:] == ["prune(sparsity=0.5)"]
    assert pruned["transforms"][2]["outputs"]["norm"] > 1e-4
    head = load_file(tmp_path / "pruned" / "weights" / "model.safetensors")["head/kernel"]
    assert np.mean(head == 0) == 0.5


def test_a_run_in_hugging_face_s_layout(runs: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert export(runs, out, "--to", "hf") == 0
    content = json.loads((out / "manifest.json").read_text())
    assert content["formats"]["hf"]["facts"]["architecture"] == "ViTForImageClassification"
    assert content["formats"]["hf"]["programs"] == ["forward"]
    assert {p.name for p in (out / "hf").iterdir()} == {"config.json", "loader.py", "model.safetensors"}
    found = Importer().read(out / "hf").parameters
    assert "blocks/0/attention/query/kernel" in found  # merged, not beside its adapters
    if content["status"] == "unverified":
        assert "NOT COMPARED with the live model: its loader needs transformers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--transform", "int9"), "no plugin 'transform.int9'. Did you mean 'transform.int8'?"),
        (("--transform", "prune(sparsity=2.0)"), "--transform prune(sparsity=2.0): sparsity = 2.0: must be between"),
        (
            ("--to", "hf", "--transform", "lora_merge", "--transform", "int8"),
            "leave out transforms that store others, such as int8",
        ),
        (("--transform", "int8", "--bisect"), "--bisect names layers of the model as it was trained"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(runs: Path, tmp_path: Path, capsys, words, message: str) -> None:
    assert export(runs, tmp_path / "out", *words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
