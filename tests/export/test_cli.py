"""The verbs: from a run to an artifact, and every mistake in one clear line. Artifacts are whole, and nothing is written over them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assay import config, registry
from assay.cli import main
from assay.runs import open_run
from assay.train.launch import start
from assay_export.stablehlo.exporter import StableHLO

from .conftest import CLASSES, COMMON, model

EXPERIMENT = CLASSES + model("mlp", "hidden = (16,)") + COMMON


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    start(config.load_text(EXPERIMENT, "digits.gin"), root)
    return root


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "digits"
    with registry.temporary("exporter", "stablehlo", StableHLO):
        assert (
            main(["export", "latest", "--root", str(runs), "--out", str(out), "--max-batch", "4", "--examples", "64"])
            == 0
        )
    return out


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def said(capsys, *words: str) -> str:
    assert main([str(word) for word in words]) == 1
    return capsys.readouterr().err


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_an_artifact_says_what_it_is(made, runs, capsys) -> None:
    content = json.loads((made / "manifest.json").read_text())
    run = open_run("latest", runs)
    assert content["status"] == "verified"
    assert content["lineage"]["run"] == run.id
    assert content["lineage"]["data"] == run.record()["data"]
    assert content["lineage"]["config_digest"] == run.record()["config_digest"]
    assert content["programs"]["forward"]["inputs"] == {
        "image": {"shape": ["batch", 8, 8, 1], "dtype": "float32", "below": None}
    }
    assert set(content["files"]) == set(files(made)) - {"manifest.json"}
    assert main(["artifact", "show", str(made)]) == 0
    assert "forward  input   image   float32  (batch, 8, 8, 1)" in capsys.readouterr().out
    parity = json.loads((made / "parity.json").read_text())["formats"]["stablehlo"]
    assert parity["examples"] == 64
    assert set(parity["metrics"]) == {"loss", "accuracy"}


def test_it_is_verified_predicted_and_refreshed(made, tmp_path, capsys) -> None:
    assert main(["artifact", "verify", str(made)]) == 0
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "in.npz", image=images)
    (tmp_path / "in.json").write_text(json.dumps({"image": images.tolist()}))
    assert main(["predict", str(made), "--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]) == 0
    capsys.readouterr()
    assert main(["predict", str(made), "--input", str(tmp_path / "in.json")]) == 0
    found = np.asarray(json.loads(capsys.readouterr().out)["output"], np.float32)
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["output"], found)
    before = files(made)
    with registry.temporary("exporter", "stablehlo", StableHLO):
        assert main(["artifact", "refresh", str(made), "--out", str(tmp_path / "new")]) == 0
    assert files(made) == before
    assert main(["artifact", "verify", str(tmp_path / "new")]) == 0
    # The generated file, on its own: no Assay is imported, nothing is left behind.
    code = (
        "import sys, runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__'); "
        "assert not [m for m in sys.modules if m.startswith('assay')]"
    )
    words = ["forward", "--input", tmp_path / "in.npz", "--output", tmp_path / "alone.npz"]
    subprocess.run([sys.executable, "-I", "-c", code, made / "run.py", *words], check=True, cwd=tmp_path)
    with np.load(tmp_path / "alone.npz") as arrays:
        np.testing.assert_allclose(arrays["output"], found, rtol=1e-4, atol=1e-5)
    assert files(made) == before


def test_nothing_says_where_it_was_made(made) -> None:
    places = [str(Path(__file__).parents[2]).encode(), sys.prefix.encode(), str(made.parent).encode()]
    assert [name for name, content in files(made).items() if any(place in content for place in places)] == []


def test_the_loader_is_short(made) -> None:
    assert len((made / "run.py").read_text().splitlines()) < 100
    assert len((made / "stablehlo/loader.py").read_text().splitlines()) < 100


def test_nothing_is_written_over(made, runs, tmp_path, capsys) -> None:
    before = files(made)
    assert "exists and is not an empty directory" in said(capsys, "export", "latest", "--root", runs, "--out", made)
    assert "exists and is not an empty directory" in said(capsys, "artifact", "refresh", made, "--out", made)
    assert files(made) == before
    (tmp_path / "file").write_text("mine")
    assert "exists and is not an empty directory" in said(
        capsys, "export", "latest", "--root", runs, "--out", tmp_path / "file"
    )
    assert "file is no directory; choose another one" in said(
        capsys, "export", "latest", "--root", runs, "--out", tmp_path / "file/x"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_export_that_breaks_leaves_nothing(runs, tmp_path, monkeypatch, capsys) -> None:
    import assay_export.export

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assay_export.export.stored, "store", full)
    (tmp_path / "empty").mkdir()
    words = ("export", "latest", "--root", runs, "--out", tmp_path / "empty", "--max-batch", "1", "--examples", "8")
    assert "No space left on device; make room" in said(capsys, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
    assert not any((tmp_path / "empty").iterdir())


def test_a_run_that_cannot_be_exported_is_refused(runs, tmp_path, capsys) -> None:
    run = open_run("latest", runs)
    words = ("export", "latest", "--root", runs, "--out", tmp_path / "out")
    with run.session():
        assert "is still training; wait until it ends" in said(capsys, *words)
    assert "no checkpoint of step 7" in said(capsys, *words, "--step", "7")
    assert "keeps no best checkpoint" in said(capsys, *words, "--best")
    assert "no plugin 'exporter.onyx'" in said(capsys, *words, "--to", "onyx")
    assert "--max-batch 0: must be at least 1" in said(capsys, *words, "--max-batch", "0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("weights/model.safetensors", lambda b: b[:-4] + b"\0\0\0\1", "was changed: another SHA-256"),
        ("weights/model.safetensors", lambda b: b[:-1], "bytes, not"),
        ("stablehlo/forward.jaxexport", None, "stablehlo/forward.jaxexport is missing"),
        ("run.py", lambda b: b + b"#", "run.py has"),
        ("further.txt", lambda b: b"x", "further.txt does not belong to the artifact"),
        ("manifest.json", lambda b: b.replace(b'"high": 4', b'"high": 9'), "manifest.json was changed"),
        ("manifest.json", lambda b: b[:100], "manifest.json cannot be read"),
        (
            "manifest.json",
            lambda b: b.replace(b'"format": 1', b'"format": 9'),
            "has format 9, this Assay reads format 1",
        ),
        ("manifest.json", None, "is no artifact: it has no manifest.json"),
    ],
)
def test_a_corrupted_artifact_is_refused(name, change, message, copy, tmp_path, capsys) -> None:
    path = copy / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    np.savez(tmp_path / "in.npz", image=np.zeros((1, 8, 8, 1), np.float32))
    assert message in said(capsys, "artifact", "verify", copy)
    assert message in said(capsys, "predict", copy, "--input", tmp_path / "in.npz")


def test_an_artifact_that_failed_is_not_used(copy, tmp_path, capsys) -> None:
    from assay_export import manifest

    content = manifest.read(copy)
    weights = bytearray((copy / "weights/model.safetensors").read_bytes())
    weights[-4:] = b"\0\0\x80\x41"  # a bias is 16.0
    (copy / "weights/model.safetensors").write_bytes(weights)
    manifest.seal(copy, content, "verified")
    assert main(["artifact", "verify", str(copy)]) == 1
    assert "DIFFERS: " in capsys.readouterr().out
    manifest.seal(copy, content, "failed")
    np.savez(tmp_path / "in.npz", image=np.zeros((1, 8, 8, 1), np.float32))
    assert "is marked failed: it differs from its model" in said(
        capsys, "predict", copy, "--input", tmp_path / "in.npz"
    )


def test_an_export_that_differs_is_marked_failed(runs, tmp_path, monkeypatch, capsys) -> None:
    from assay_export import weights

    write = weights.write
    monkeypatch.setattr(weights, "write", lambda w, place: write({**w, "head/bias": w["head/bias"][::-1] + 1}, place))
    out = tmp_path / "out"
    words = ["export", "latest", "--root", runs, "--out", out, "--max-batch", "1", "--examples", "8", "--bisect"]
    with registry.temporary("exporter", "stablehlo", StableHLO):
        assert main([str(word) for word in words]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERS: real examples: off by" in printed
    assert "FAILED the comparison" in printed
    assert json.loads((out / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.npz", b"PK nothing", "cannot be read as named arrays"),
        ("in.json", b"[1, 2]", "cannot be read as named arrays"),
        ("none.npz", None, "No such file"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(name, content, message, made, tmp_path, capsys) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in said(capsys, "predict", made, "--input", tmp_path / name)


def test_text_needs_a_tokenizer(made, capsys) -> None:
    assert "it continues no text; use --input" in said(capsys, "predict", made, "--text", "x")
