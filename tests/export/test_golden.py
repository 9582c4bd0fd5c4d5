"""An artifact of release 0.1.0 must load for ever, or say that its programs have expired and what writes them anew.

Never make it anew because this test fails: a release that cannot read it breaks what users have.
"""

import datetime
from pathlib import Path

import numpy as np
import pytest

from assay import registry
from assay.cli import main
from assay_export import artifact, manifest
from assay_export.stablehlo.exporter import StableHLO
from assay_export.stored import stored
from assay_export.weights import Weights

GOLDEN = Path(__file__).parents[1] / "golden/artifact"


def test_its_files_are_read() -> None:
    content = manifest.read(GOLDEN)
    assert manifest.damage(GOLDEN, content) == []
    weights = Weights(GOLDEN / "weights")
    assert {path: w.shape for path, w in weights.items()} == {
        "head/bias": (10,),
        "head/kernel": (16, 10),
        "layers/0/bias": (16,),
        "layers/0/kernel": (64, 16),
    }
    assert [case.kind for case, _ in stored(GOLDEN / artifact.CASES)] == ["forward"] * 3


def test_its_weights_give_its_outputs() -> None:
    w = Weights(GOLDEN / "weights")
    for case, live in stored(GOLDEN / artifact.CASES):
        x = case.inputs["image"].reshape(-1, 64)
        hidden = np.maximum(x @ w["layers/0/kernel"] + w["layers/0/bias"], 0)
        np.testing.assert_allclose(hidden @ w["head/kernel"] + w["head/bias"], live, rtol=1e-4, atol=1e-4)


def test_its_programs_run_or_say_that_they_expired(capsys) -> None:
    with registry.temporary("exporter", "stablehlo", StableHLO):
        code = main(["artifact", "verify", str(GOLDEN)])
    printed = capsys.readouterr().out
    if code:
        assert datetime.date.today().isoformat() > manifest.read(GOLDEN)["formats"]["stablehlo"]["facts"]["expires"]
        assert "it expired on" in printed
        pytest.skip("its programs have expired, as they say")
    assert "stablehlo  forward    3 cases" in printed
