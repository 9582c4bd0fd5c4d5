"""StableHLO: what its modules say of themselves, and inputs that do not fit them. Families are in test_families."""

import json
from pathlib import Path

import numpy as np
import pytest

from assay.errors import ExportError
from assay.testing import ExporterKit
from assay_export.runners import opened
from assay_export.stablehlo.exporter import StableHLO

from .conftest import Model


class TestStableHLO(ExporterKit):
    format = "stablehlo"

    def plugin(self) -> StableHLO:
        return StableHLO()


def test_static_modules_name_their_arguments(decoder: Model, decoder_artifact: Path) -> None:
    facts = json.loads((decoder_artifact / "manifest.json").read_text())["formats"]["stablehlo"]["facts"]
    (static,) = facts["programs"]["decode"]["static"].values()
    assert static["sizes"] == {"batch": 1, "cache": 5}
    assert [a for a in static["arguments"] if not a.startswith("weights/")] == [
        "inputs",
        "position",
        "cache/0/0",
        "cache/0/1",
        "cache/1/0",
        "cache/1/1",
    ]
    shapes = {path: w.shape for path, w in decoder.source.weights.items()}
    assert {a.removeprefix("weights/") for a in static["arguments"] if a.startswith("weights/")} == set(shapes)


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        ({"batch": 1, "seqs": 4}, "bucket seqs: sizes of this model are batch, seq, cache"),
        ({"batch": 2}, "bucket batch = 2: must be from 1 to 1"),
    ],
)
def test_a_bucket_of_sizes_that_there_are_not_is_refused(
    bucket: dict[str, int], message: str, decoder: Model, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        StableHLO(platforms=("cpu",), buckets=[bucket]).write(decoder.source, tmp_path)


def test_shapes_out_of_bounds_are_refused(decoder: Model, decoder_artifact: Path) -> None:
    runner = opened(decoder_artifact, "stablehlo", StableHLO())
    ids = np.zeros((1, 6), np.int32)
    with pytest.raises(ExportError, match=r"'inputs' has shape \(1, 6\).*seq = 1 to 5"):
        runner("forward", {"inputs": ids})
    with pytest.raises(ExportError, match="lies in 256 … 256; it must lie in 0 … 255"):
        runner("forward", {"inputs": np.full((1, 2), 256, np.int32)})
    with pytest.raises(ExportError, match="is float64; it must be int32"):
        runner("forward", {"inputs": np.zeros((1, 2))})
    with pytest.raises(ExportError, match="forward takes inputs; given were tokens"):
        runner("forward", {"tokens": ids})
    with pytest.raises(ExportError, match="no program 'backward'; there are forward, prefill, decode"):
        runner("backward", {})
    cache = {
        n: np.zeros(t.at({"batch": 1, "cache": 2}), np.float32)
        for n, t in decoder.source.program("decode").signature.inputs.items()
        if "cache/" in n
    }
    with pytest.raises(ExportError, match="seq = 3 is more than cache = 2"):
        runner("prefill", {"inputs": ids[:, :3], **cache})
    with pytest.raises(ExportError, match="'position' lies in 2 … 2; it must lie in 0 … 1"):
        runner("decode", {"inputs": ids[:, :1], "position": np.int32(2), **cache})
