"""`assay bench`: what it measures, what it says, what it refuses; and that decoding copies no cache."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from assay import config
from assay.cli import main
from assay.errors import ExportError
from assay.exported import Dim, Signature, Tensor
from assay.train.launch import start
from assay_export import bench, manifest, run
from assay_export.runners import opened
from assay_export.stablehlo.exporter import StableHLO

from .conftest import COMMON, DECODER, TEXT, Model

EXPERIMENT = TEXT + "experiment.model = @model.transformer()\n" + DECODER + COMMON


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    start(config.load_text(EXPERIMENT, "text.gin"), root)
    return root


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "text"
    limits = ("--max-batch", "2", "--max-length", "6", "--examples", "8")
    words = ["export", "latest", "--root", str(root), "--out", str(out), "--to", "stablehlo(platforms=['cpu'])"]
    assert main([*words, *limits]) == 0
    return out


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["bench", *map(str, words)]) == 1
    shown = capsys.readouterr()
    assert not re.search(r"^\d+/\d+ ", shown.err, re.MULTILINE)  # nothing was measured
    assert shown.out == ""
    return shown.err


def test_every_program_is_measured_beside_the_live_model(made: Path, root: Path, tmp_path: Path, capsys) -> None:
    files = "--json", tmp_path / "f.json", "--plot", tmp_path / "f.png"
    words = [made, "--root", root, "--batch", "1,2", "--seq", "2,5", "--rounds", "2", *files]
    assert main(["bench", *map(str, words)]) == 0
    shown = capsys.readouterr()
    found = json.loads((tmp_path / "f.json").read_text())
    results = {
        (r["program"], r["format"], r["sizes"]["batch"], r["sizes"].get("seq", r["context"])): r
        for r in found["results"]
    }
    sizes = [(batch, length) for batch in (1, 2) for length in (2, 5)]
    programs, formats = ("forward", "prefill", "decode"), ("stablehlo", "live")
    assert set(results) == {(p, f, *s) for p in programs for f in formats for s in sizes}
    for (program, name, batch, length), r in results.items():
        assert 0 < r["p50_ms"] <= r["p90_ms"] <= r["p99_ms"]
        assert r["samples"] >= 2
        assert r["first_s"] > 0
        assert r["rows_per_s"] == pytest.approx(1e3 * batch / r["p50_ms"])
        assert r["tokens_per_s"] == pytest.approx(r["rows_per_s"] * (1 if program == "decode" else length))
        assert r["sizes"].get("cache") == (None if program == "forward" else 6)
        assert r["times_live"] == (1.0 if name == "live" else pytest.approx(r["times_live"]))
    lines = shown.out.splitlines()
    assert lines[0].split()[:4] == ["PROGRAM", "BATCH", "LENGTH", "FORMAT"]
    assert len(lines) == 2 + len(results)
    one = results["decode", "stablehlo", 2, 5]
    row = next(line.split() for line in lines if line.split()[:4] == ["decode", "2", "5", "stablehlo"])
    assert row[5] == f"{one['p50_ms']:.2f}"
    assert row[-1] == f"{one['times_live']:.2f}"
    assert lines[-1] == found["live"] == f"live is run {found['lineage']['run']}, step 2"
    assert "12/12 decode: cache 6, batch 2, context 5" in shown.err
    assert found["packages"]["jax"] == jax.__version__
    assert found["processors"] >= 1
    assert found["host"]["cpus"] >= 1
    assert (tmp_path / "f.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_its_run_it_says_why_it_is_not_compared(made: Path, tmp_path: Path, capsys) -> None:
    words = [made, "--program", "decode", "--batch", "1", "--seq", "6", "--rounds", "1"]
    assert main(["bench", *map(str, words), "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert shown[-1].startswith("not compared with the live model: no run")
    assert main(["bench", *map(str, words), "--no-live"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "not compared with the live model: --no-live"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "3"], "--batch 3: must be from 1 to 2, the artifact's bounds"),
        (["--seq", "2,7"], "--seq 7: must be from 1 to 6, the artifact's bounds"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--format", "onnx"], "has no format 'onnx'; it has stablehlo"),
        (["--program", "backward"], "the artifact has no program 'backward'; it has forward, prefill, decode"),
        (["--json", "nowhere/f.json"], "--json nowhere/f.json cannot be written; name a file"),
        (["--plot", "."], "--plot . cannot be written; name a file"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(words, message, made: Path, capsys) -> None:
    assert message in said(capsys, made, *words)


def test_sizes_that_are_no_numbers_are_wrong_usage(made: Path, capsys) -> None:
    assert main(["bench", str(made), "--batch", "one"]) == 2
    assert "'one': must be numbers with commas between them" in capsys.readouterr().err


def test_an_artifact_that_failed_is_refused(made: Path, tmp_path: Path, capsys) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    manifest.seal(copy, manifest.read(copy), {"stablehlo": manifest.FAILED})
    assert "is marked failed: it differs from its model" in said(capsys, copy)
    (copy / "stablehlo/decode.cpu.jaxexport").unlink()
    assert "decode.cpu.jaxexport is missing" in said(capsys, copy)


def test_usual_sizes_fit_the_bounds() -> None:
    signature = Signature({"x": Tensor(("batch", "seq"), "float32")}, {}, (), (("seq", "cache"),))
    dims = {"batch": Dim(1, 32), "seq": Dim(1, 100)}
    found = [(s.batch, s.length, s.tokens) for s in bench.settings({"forward": signature}, dims)]
    assert found == [(1, 25, 25), (1, 100, 100), (8, 25, 200), (8, 100, 800)]
    fixed = Signature({"x": Tensor((4, 8), "float32")}, {})
    assert bench.settings({"forward": fixed}, {}) == [bench.Setting("forward", {})]
    with pytest.raises(ExportError, match="--seq: the artifact's programs have a fixed seq; leave it out"):
        bench.settings({"forward": fixed}, {}, lengths=[4])


def test_turns_are_interleaved_and_the_first_call_stands_alone() -> None:
    order: list[str] = []

    def call(name: str) -> bench.Call:
        def answer(program: str, inputs: Any) -> Any:
            order.append(name)
            return {"output": inputs["x"]}

        return answer

    signature = Signature({"x": Tensor(("batch",), "float32")}, {})
    found = bench.measured({n: call(n) for n in ("a", "live")}, bench.Setting("forward", {"batch": 3}), signature, 2)
    turn = 1 + bench.CALLS
    assert order == ["a"] * 3 + ["live"] * 3 + (["a"] * turn + ["live"] * turn) * 2
    assert [(m.format, len(m.samples)) for m in found] == [("a", 2 * bench.CALLS), ("live", 2 * bench.CALLS)]
    assert found[1].of_live == 1.0


def test_a_cache_stays_where_stablehlo_has_it(decoder: Model, tmp_path: Path) -> None:
    place = decoder.artifact(tmp_path / "artifact")
    signature = decoder.source.program("decode").signature
    for call in (opened(place, "stablehlo", StableHLO()), run.load(place, "stablehlo", StableHLO().loader())):
        inputs: dict[str, Any] = bench.inputs_of(bench.Setting("decode", {"batch": 1, "cache": 5}, 3), signature)
        found = call("decode", inputs)
        assert all(isinstance(found[name], jax.Array) for name in signature.donated)
        before = {name: found[name].unsafe_buffer_pointer() for name in signature.donated}
        further = call("decode", {**inputs, **{name: found[name] for name in signature.donated}})
        assert {name: further[name].unsafe_buffer_pointer() for name in signature.donated} == before
        assert all(found[name].is_deleted() for name in signature.donated)


def test_the_context_is_the_place_of_the_token(decoder: Model) -> None:
    signature = decoder.source.program("decode").signature
    inputs = bench.inputs_of(bench.Setting("decode", {"batch": 1, "cache": 5}, 3), signature)
    assert int(inputs["position"]) == 2
    assert {inputs[name].shape for name in signature.donated} == {(1, 2, 5, 4)}
    assert not any(inputs[name].any() for name in signature.donated)
    assert inputs["inputs"].dtype == np.int32
