"""128 greedy tokens, one after another with the cache, are those that one pass over the whole would give, in each format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay_export import artifact
from assay_export.cases import STEPS, greedy
from assay_export.onnx.exporter import ONNX
from assay_export.runners import opened
from assay_export.stablehlo.exporter import StableHLO

from .conftest import Model, made

PROMPT = 9


@pytest.fixture(scope="module")
def long() -> Model:
    return made("transformer", max_batch=2, max_length=PROMPT + STEPS)


@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        ("stablehlo", StableHLO(platforms=("cpu",), buckets=())),
        pytest.param("onnx", ONNX(), marks=pytest.mark.slow),
    ],
    ids=["stablehlo", "onnx"],
)
def test_128_greedy_tokens_with_a_cache_are_those_of_the_live_model(
    name: str, exporter: Any, long: Model, tmp_path: Path
) -> None:
    place = tmp_path / "artifact"
    place.mkdir()
    artifact.fill(place, long.source, {name: exporter}, {"tokenizer": None})
    prompt = np.random.default_rng(0).integers(0, 256, (2, PROMPT)).astype(np.int32)
    signatures = {program.name: program.signature for program in long.source.programs}
    sizes = {"batch": 2, "cache": PROMPT + STEPS}
    tokens, outputs = greedy(opened(place, name, exporter), prompt, STEPS, signatures, sizes)
    assert tokens.shape == (2, PROMPT + 128)
    assert len(np.unique(tokens[:, PROMPT:])) > 3  # it does not stand still
    whole = {
        "inputs": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    }
    logits = np.asarray(long.live.forward(whole))
    np.testing.assert_array_equal(tokens[:, PROMPT:], logits[:, PROMPT - 1 : -1].argmax(-1))
    np.testing.assert_allclose(outputs, logits[:, PROMPT - 1 : -1], atol=2e-5 * np.abs(logits).max(), rtol=0)
