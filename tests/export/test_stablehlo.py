"""Every family in the tree, through StableHLO, in a fresh process, against the live model."""

import numpy as np
import pytest

from assay.testing import ExporterKit
from assay_export.stablehlo.exporter import StableHLO

from .conftest import FAMILIES, made

QUICK = ("mlp",)


class TestStableHLO(ExporterKit):
    format = "stablehlo"

    def plugin(self) -> StableHLO:
        return StableHLO()


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_a_family_is_the_same_when_exported(family, tmp_path) -> None:
    model = made(family)
    assert "batch" in model.source.dims
    assert ("seq" in model.source.dims) == ("inputs" in model.source.examples)
    decodes = family in ("transformer", "gpt2", "moe", "mamba2", "lora", "with_reference")
    assert [p.name for p in model.source.programs] == ["forward", *(["prefill", "decode"] if decodes else [])]
    checked = model.checked(tmp_path / "artifact")
    assert checked.problems == []
    assert checked.worst <= 2e-5
    assert {row["kind"] for row in checked.rows} == {"forward", *(("prefill", "decode", "steps") if decodes else ())}
    assert bool(checked.metrics) == (family != "bayesian_mlp")


def test_static_modules_name_their_arguments(decoder, tmp_path) -> None:
    import json

    place = decoder.artifact(tmp_path / "artifact")
    facts = json.loads((place / "manifest.json").read_text())["formats"]["stablehlo"]["facts"]
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


def test_shapes_out_of_bounds_are_refused(decoder, tmp_path) -> None:
    from assay.errors import ExportError
    from assay_export.runners import opened

    runner = opened(decoder.artifact(tmp_path / "artifact"), "stablehlo", StableHLO())
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
        n: np.zeros((1, 2, *t.shape[2:]), np.float32)
        for n, t in decoder.source.program("decode").signature.inputs.items()
        if "cache/" in n
    }
    with pytest.raises(ExportError, match="seq = 3 is more than cache = 2"):
        runner("prefill", {"inputs": ids[:, :3], **cache})
    with pytest.raises(ExportError, match="'position' lies in 2 … 2; it must lie in 0 … 1"):
        runner("decode", {"inputs": ids[:, :1], "position": np.int32(2), **cache})
