"""What the gate lets through: the bound is that of the dtype that is computed in, and metrics move no further than outputs explain."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from assay.exported import BOUNDS, bound_of
from assay_export import artifact
from assay_export.live import Live
from assay_export.parity import gate, metric_problems
from assay_export.runners import _environment
from assay_export.stablehlo.exporter import StableHLO
from assay_export.transforms.cast import Cast
from assay_export.transforms.report import transformed

from .conftest import DECODER, FAMILIES, TEXT, Model, made
from .test_gate import swapped

EXPORTER = StableHLO(platforms=("cpu",), buckets=())


def checked(model: Model, place: Path, source: Any, live: Any = None) -> Any:
    place.mkdir()
    artifact.fill(place, source, {"stablehlo": EXPORTER}, {"tokenizer": None})
    return gate(place, "stablehlo", EXPORTER, source, live or model.live, examples=24)


@pytest.fixture(scope="module")
def digits() -> Model:
    return made("mlp", max_batch=3)


def test_what_is_stored_in_few_bits_and_computed_in_float32_is_held_to_float32(digits: Model, tmp_path: Path) -> None:
    source, live, _ = transformed(digits.source, digits.live, [("cast", Cast())], 24)
    found = checked(digits, tmp_path / "cast", source, live)
    assert (found.bound, found.status) == (BOUNDS["float32"], "verified")
    weights = {path: np.asarray(w) for path, w in source.weights.items()}
    weights["head/bias"] = (weights["head/bias"].astype(np.float32) + 2e-3).astype(weights["head/bias"].dtype)
    wrong = checked(digits, tmp_path / "wrong", dataclasses.replace(source, weights=weights), live)
    assert wrong.status == "failed"
    assert max(row["max_abs"] for row in wrong.rows) < BOUNDS["bfloat16"]


def test_outputs_over_the_evaluation_examples_are_compared(digits: Model, tmp_path: Path) -> None:
    found = checked(digits, tmp_path / "artifact", digits.source)
    labels = [row["case"] for row in found.rows]
    assert [label for label in labels if label.startswith("evaluation")][:2] == [
        "evaluation 1 to 3",
        "evaluation 4 to 6",
    ]
    assert len([label for label in labels if label.startswith("evaluation")]) == 8
    assert found.examples == 24


def test_a_bfloat16_artifact_is_held_to_bfloat16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = TEXT + "experiment.model = @model.transformer()\n" + DECODER + "experiment.compute_dtype = 'bfloat16'\n"
    monkeypatch.setitem(FAMILIES, "bfloat16", text)  # type: ignore[arg-type]
    model = made("bfloat16", max_batch=1, max_length=5)
    assert {str(w.dtype) for w in model.source.weights.values()} == {"bfloat16"}
    found = checked(model, tmp_path / "sound", model.source)
    assert (found.problems, found.bound) == ([], BOUNDS["bfloat16"])
    wrong = checked(model, tmp_path / "wrong", swapped(model.source))
    assert {row["kind"] for row in wrong.rows if not row["ok"]} == {"forward", "prefill", "decode", "steps"}


@pytest.mark.parametrize(
    ("found", "live", "bound", "turned", "ok"),
    [
        (0.5, 0.5, 2e-5, 0.0, True),
        (0.5 + 1e-5, 0.5, 2e-5, 0.0, True),
        (0.5 + 1 / 512, 0.5, 2e-5, 0.0, False),
        (0.5 + 1 / 512, 0.5, 2e-5, 1 / 512, True),
        (0.5 + 2 / 512, 0.5, 2e-5, 1 / 512, False),
        (20.0 + 3e-4, 20.0, 2e-5, 0.0, True),
        (0.6, 0.5, 4e-2, 0.0, False),
        (float("nan"), 0.5, 2e-5, 0.0, False),
        (float("nan"), float("nan"), 2e-5, 0.0, True),
        (float("inf"), float("inf"), 2e-5, 0.0, True),
        (-float("inf"), float("inf"), 2e-5, 1.0, False),
        (1e30, float("inf"), 2e-5, 1.0, False),
    ],
)
def test_metrics_move_no_further_than_outputs_explain(
    found: float, live: float, bound: float, turned: float, ok: bool
) -> None:
    assert (metric_problems({"accuracy": (found, live)}, bound, turned) == []) is ok


def test_items_that_turn_are_counted_by_their_weight(digits: Model) -> None:
    def other(shown: Any) -> Any:
        scores = np.array(digits.live.forward(shown))
        scores[0] = -scores[0]  # of each batch of four
        return scores

    scores = digits.live.scores([other, digits.live.forward], 4, 24)
    assert scores is not None
    assert scores.turned == pytest.approx(6 / 24)
    assert abs(scores.values[0]["accuracy"] - scores.values[1]["accuracy"]) <= scores.turned


def test_the_coarsest_dtype_counts() -> None:
    assert bound_of("float32", "float16") == BOUNDS["float16"]
    assert bound_of("bfloat16", "float16") == BOUNDS["bfloat16"]


def test_a_fresh_process_leaves_room_on_a_gpu_and_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _environment()["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert "triton" not in _environment().get("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    found = _environment()
    assert found["NVIDIA_TF32_OVERRIDE"] == "0"
    assert found["XLA_FLAGS"] == "--xla_force_host_platform_device_count=1 --xla_gpu_enable_triton_gemm=false"


def test_the_live_model_multiplies_in_float32(digits: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, network = [], type(digits.live.plan.network)
    right = network.merge

    def merge(*arguments: Any) -> Any:
        seen.append(jax.config.jax_default_matmul_precision)
        return right(*arguments)

    monkeypatch.setattr(network, "merge", merge)
    Live(digits.live.plan, digits.live.variables).forward(digits.source.examples)
    assert seen[-1] == "highest"
