"""The verbs: from a run to an artifact, and every mistake in one clear line. Artifacts are whole, and nothing is written over them."""

import dataclasses
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assay import config, registry
from assay.cli import main
from assay.errors import ExportError
from assay.exported import Exported, Written
from assay.runs import open_run
from assay.train.launch import start
from assay_export import artifact, manifest, run, runners, stored
from assay_export.cli import predict
from assay_export.stablehlo.exporter import StableHLO

from .conftest import CLASSES, COMMON, model

SETTINGS = "buckets=[], platforms=['cpu', 'tpu']"
EXPERIMENT = CLASSES + model("mlp", "hidden = (16,)") + COMMON


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    start(config.load_text(EXPERIMENT, "digits.gin"), root)
    return root


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "digits"
    words = ["--root", runs, "--out", out, "--max-batch", 4, "--examples", 64, "--to", f"stablehlo({SETTINGS})"]
    with registry.temporary("exporter", "stablehlo", StableHLO):
        assert main(["export", "latest", *map(str, words)]) == 0
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


def test_it_has_the_settings_that_were_given(made, capsys) -> None:
    content = json.loads((made / "manifest.json").read_text())
    assert content["formats"]["stablehlo"]["settings"] == {"platforms": ["cpu", "tpu"], "buckets": []}
    assert set(content["formats"]["stablehlo"]["facts"]["programs"]["forward"]["platforms"]) == {"cpu", "tpu"}
    assert not any((made / "stablehlo/static").iterdir())
    assert main(["artifact", "show", str(made)]) == 0
    assert "platforms=['cpu', 'tpu'], buckets=[]" in capsys.readouterr().out


def test_it_is_verified_predicted_and_refreshed(made, tmp_path, capsys) -> None:
    assert main(["artifact", "verify", str(made)]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "computing digests"
    assert [f"comparing stablehlo: case {i} of {len(shown) - 1}" for i in range(1, len(shown))] == [
        line.partition(",")[0] for line in shown[1:]
    ]
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
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith(("writing", "comparing"))][1:] == [
        "writing stablehlo",
        *shown[1:],
    ]
    assert files(made) == before
    assert main(["artifact", "verify", str(tmp_path / "new")]) == 0
    formats = [json.loads((place / "manifest.json").read_text())["formats"] for place in (made, tmp_path / "new")]
    assert formats[0]["stablehlo"]["settings"] == formats[1]["stablehlo"]["settings"]
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
    assert "which it would damage; choose another" in said(
        capsys, "artifact", "refresh", made, "--out", made / "stablehlo/again"
    )
    assert files(made) == before
    (tmp_path / "file").write_text("mine")
    assert "exists and is not an empty directory" in said(
        capsys, "export", "latest", "--root", runs, "--out", tmp_path / "file"
    )
    assert "file is no directory; choose another one" in said(
        capsys, "export", "latest", "--root", runs, "--out", tmp_path / "file/x"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_cannot_be_made_is_refused(runs, tmp_path, monkeypatch, capsys) -> None:
    words = ("export", "latest", "--root", runs, "--out")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ". is the directory that you are in; name a directory to make in it, such as --out model" in said(
        capsys, *words, "."
    )
    assert ".. exists and is not an empty directory" in said(capsys, *words, "..")
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    assert "volume is a mount point; name a directory to make in it" in said(capsys, *words, "volume")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    assert f"cannot be made: {tmp_path} may not be written; choose another" in said(capsys, *words, tmp_path / "x/y")
    with pytest.raises(ExportError, match=r"cannot be (made|written): .*; choose"), artifact.new(Path("/proc/none/x")):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_an_artifact_is_as_readable_as_its_owner_wants(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        with artifact.new(tmp_path / "out") as directory:
            (directory / "weights").mkdir()
            (directory / "weights/model").touch(0o600)  # as safetensors does
    finally:
        os.umask(before)
    paths = [tmp_path / "out", tmp_path / "out/weights", tmp_path / "out/weights/model"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o750, 0o750, 0o640]


def test_its_name_is_on_disk_when_it_is_there(tmp_path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(artifact, "sync_directory", lambda path: synced.append((path, (tmp_path / "out").is_dir())))
    with artifact.new(tmp_path / "out") as directory:
        (directory / "file").touch()
    assert synced == [(tmp_path, True)]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room there and in "),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.npy"), "'rows.npy'; mend that, or choose"),
    ],
)
def test_what_kept_an_artifact_from_being_written_is_said(error, message, tmp_path) -> None:
    with pytest.raises(ExportError, match=re.escape(message)), artifact.new(tmp_path / "out"):
        raise error
    assert not any(tmp_path.iterdir())


def test_what_came_into_being_meanwhile_stays(tmp_path) -> None:
    out = tmp_path / "out"

    def export() -> None:
        with artifact.new(out):
            out.mkdir()
            (out / "mine").touch()

    with pytest.raises(ExportError, match="something else was written there meanwhile; choose another"):
        export()
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["out", "out/mine"]


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
    assert "no plugin 'exporter.onyx'" in said(capsys, *words, "--to", "stablehlo,onyx")
    with registry.temporary("exporter", "stablehlo", StableHLO):
        assert "has no setting 'bucket'. Did you mean 'buckets'?" in said(
            capsys, *words, "--to", "stablehlo(bucket=[])"
        )
    assert "--max-batch 0: must be at least 1" in said(capsys, *words, "--max-batch", "0")
    shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(open_run("latest", tmp_path / "runs").checkpoints)
    assert "has no checkpoint" in said(
        capsys, "export", "latest", "--root", tmp_path / "runs", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noted(StableHLO):
    def write(self, source: Exported, directory: Path) -> Written:
        return dataclasses.replace(super().write(source, directory), notes=("sizes are even",))


def test_it_says_what_it_does_and_every_note_once(runs, tmp_path, capsys) -> None:
    words = [
        "--root",
        runs,
        "--out",
        tmp_path / "out",
        "--max-batch",
        1,
        "--examples",
        8,
        "--to",
        f"stablehlo({SETTINGS})",
    ]
    with registry.temporary("exporter", "stablehlo", Noted):
        assert main(["export", "latest", *map(str, words)]) == 0
    printed = capsys.readouterr()
    assert [line for line in printed.out.splitlines() if "even" in line] == ["note: stablehlo: sizes are even"]
    assert printed.err.splitlines() == [
        "restoring the checkpoint",
        "tracing the model",
        "writing weights",
        "writing stablehlo",
        "comparing stablehlo: case 1 of 2, real examples",
    ]
    assert "Note: stablehlo: sizes are even" in (tmp_path / "out/README.md").read_text()


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
    content = manifest.read(copy)
    weights = bytearray((copy / "weights/model.safetensors").read_bytes())
    weights[-4:] = b"\0\0\x80\x41"  # a bias is 16.0
    (copy / "weights/model.safetensors").write_bytes(weights)
    manifest.seal(copy, content, {"stablehlo": "verified"})
    assert main(["artifact", "verify", str(copy)]) == 1
    assert "DIFFERS: " in capsys.readouterr().out
    manifest.seal(copy, content, {"stablehlo": "failed"})
    np.savez(tmp_path / "in.npz", image=np.zeros((1, 8, 8, 1), np.float32))
    assert "is marked failed: it differs from its model" in said(
        capsys, "predict", copy, "--input", tmp_path / "in.npz"
    )


def test_an_artifact_without_examples_is_not_verified(made, monkeypatch, capsys) -> None:
    monkeypatch.setattr(stored, "stored", lambda path: [])
    assert main(["artifact", "verify", str(made)]) == 1
    assert "DIFFERS: forward was exported, and nothing compared it" in capsys.readouterr().out


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
        ("in.npz", b"PK\x03\x04 cut", "cannot be read as named arrays"),
        ("in.npz", b"", "cannot be read as named arrays"),
        ("none.npz", None, "No such file"),
        ("in.json", b"[" * 100_000, "cannot be read as named arrays"),
        ("in.json", b'{"image": [1%s]}' % (b"0" * 400), "cannot be read as named arrays"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(name, content, message, made, tmp_path, capsys) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in said(capsys, "predict", made, "--input", tmp_path / name)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("[0, 3, 2147483647]", None),
        ("[0, 1.5, 2]", "input 'nodes' is float64; it must be int32"),
        ("[0, 4294967296, 2]", "input 'nodes' lies in 0 … 4294967296; it must lie in -2147483648 … 2147483647"),
        ("[0, 1%s, 2]" % ("0" * 30), "input 'nodes' is object; it must be int32"),
        ('["a", "b", "c"]', "input 'nodes' is <U1; it must be int32"),
    ],
)
def test_integers_are_taken_as_they_are_or_not_at_all(numbers, message, tmp_path) -> None:
    signature = {"inputs": {"nodes": {"shape": [3], "dtype": "int32", "below": None}}, "outputs": {}}
    content = {"programs": {"forward": {**signature, "donated": [], "at_most": []}}, "dims": {}}
    (tmp_path / "in.json").write_text(f'{{"nodes": {numbers}}}')
    inputs = predict._read(tmp_path / "in.json", content, "forward")
    if message is None:
        assert run.checked(content, "forward", inputs)["nodes"].dtype == np.int32
    else:
        with pytest.raises(ValueError, match=re.escape(message)):
            run.checked(content, "forward", inputs)


@pytest.mark.parametrize("dtype", ["complex64", "bool", "float32"])
def test_arrays_of_another_kind_are_refused(dtype) -> None:
    signature = {"inputs": {"nodes": {"shape": [3], "dtype": "int32", "below": None}}, "at_most": []}
    with pytest.raises(ValueError, match=f"input 'nodes' is {dtype}; it must be int32"):
        run.checked({"programs": {"forward": signature}, "dims": {}}, "forward", {"nodes": np.zeros(3, dtype)})


def test_text_needs_a_tokenizer(made, capsys) -> None:
    assert "it continues no text; use --input" in said(capsys, "predict", made, "--text", "x")
    assert "leave out --output, or give --input" in said(capsys, "predict", made, "--text", "x", "--output", "x.npz")


@pytest.fixture
def rows(tmp_path) -> Path:
    np.savez(tmp_path / "rows.npz", image=np.zeros((1, 8, 8, 1), np.float32))
    return tmp_path / "rows.npz"


def test_what_the_artifact_does_not_have_is_said(made, rows, tmp_path, capsys) -> None:
    words = ("predict", made, "--input", rows)
    assert "has no format 'onyx'; it has stablehlo" in said(capsys, *words, "--format", "onyx")
    assert "has no program 'decode'; it has forward" in said(capsys, *words, "--program", "decode")
    np.savez(tmp_path / "many.npz", image=np.zeros((9, 8, 8, 1), np.float32))
    assert "must be (batch, 8, 8, 1), batch = 1 to 4" in said(capsys, "predict", made, "--input", tmp_path / "many.npz")


def test_a_format_without_the_program_is_not_used(copy, rows, capsys) -> None:
    content = manifest.read(copy)
    whole = content["formats"]["stablehlo"]
    content["formats"] = {"half": {**whole, "programs": []}, "stablehlo": whole}
    manifest.seal(copy, content, {"half": "verified", "stablehlo": "verified"})
    message = "format half does not hold forward; use --format stablehlo"
    assert message in said(capsys, "predict", copy, "--input", rows, "--format", "half")
    assert main(["predict", str(copy), "--input", str(rows)]) == 0
    content["formats"] = {"half": {**whole, "programs": []}}
    manifest.seal(copy, content, {"half": "verified", "stablehlo": "verified"})
    assert "holds forward; export the run again" in said(capsys, "predict", copy, "--input", rows)


def test_a_format_whose_libraries_are_missing_is_said(made, rows, monkeypatch, capsys) -> None:
    def absent(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'flatbuffers'")

    monkeypatch.setattr(runners, "opened", absent)
    message = (
        "stablehlo needs jax>=.*, safetensors, flatbuffers: No module named 'flatbuffers'; install them, or choose"
    )
    assert re.search(message, said(capsys, "predict", made, "--input", rows))


def test_a_process_that_is_killed_is_said(made, tmp_path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nread line\nkill -9 $$\n")
    script.chmod(0o755)
    with (
        runners.Process(made, "stablehlo", StableHLO(), python=str(script)) as process,
        pytest.raises(
            ExportError, match=r"was killed \(signal 9\), as it is where memory runs out; free some, or export with"
        ),
    ):
        process("forward", {"image": np.zeros((1, 8, 8, 1), np.float32)})


def test_what_a_loader_prints_is_no_answer(made, tmp_path) -> None:
    class Talking(StableHLO):
        """Its loader says what it does."""

        def loader(self) -> Path:
            script = tmp_path / "loader.py"
            script.write_text("print('loading')\n" + super().loader().read_text())
            return script

    with runners.Process(made, "stablehlo", Talking()) as process:
        assert process("forward", {"image": np.zeros((1, 8, 8, 1), np.float32)})["output"].shape == (1, 10)


def test_outputs_are_written_whole_or_not_at_all(made, rows, tmp_path, monkeypatch, capsys) -> None:
    words = ("predict", made, "--input", rows, "--output")
    asked = []

    def failing(*arguments: object) -> object:
        def runner(program: str, inputs: object) -> dict[str, np.ndarray]:
            asked.append(program)
            raise ExportError("out of memory")

        return runner

    monkeypatch.setattr(runners, "opened", failing)
    assert "out is a directory; name a file" in said(capsys, *words, (tmp_path / "out").mkdir() or tmp_path / "out")
    assert "copied.npz lies in the artifact" in said(capsys, *words, made / "weights/copied.npz")
    assert "No such file or directory; choose another file" in said(capsys, *words, tmp_path / "none/out.npz")
    assert asked == []
    (tmp_path / "old.npz").write_text("old")
    before = sorted(tmp_path.iterdir())
    assert "out of memory" in said(capsys, *words, tmp_path / "old.npz")
    assert asked == ["forward"]
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old.npz").read_text() == "old"
