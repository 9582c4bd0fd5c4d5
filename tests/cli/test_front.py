"""The command line's frame, and the verbs that need no device: list, show, check, config, diff."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from assay import __version__
from assay.cli import main
from assay.cli.main import VERBS
from assay.errors import RunError

BROKEN = Path(__file__).parents[1] / "config" / "broken"
TOY = """
import dataclasses
from typing import Literal

@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    \"\"\"A toy.\"\"\"
    layers: int
    act: Literal["a", "b"] = "a"
    def build(self, spec, rngs): ...

@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    def spec(self): ...
    source = fingerprint = build = learning_rate_at = mesh_axes = rules = __call__ = spec
"""
POINTS = "[assay.model]\ntoy = toy_parts:Model\n" + "".join(
    f"[assay.{kind}]\ntoy = toy_parts:Part\n" for kind in ("dataset", "objective", "optimizer", "parallelism")
)
EXPERIMENT = "".join(
    f"experiment.{kind} = @{kind}.toy()\n" for kind in ("model", "dataset", "objective", "optimizer", "parallelism")
)
EXPERIMENT += "experiment.steps = 5\nexperiment.batch_size = 2\nmodel.toy.layers = 2\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution of toy plugins on sys.path and a folder with an experiment of them, as working directory."""
    info = tmp_path / "toy-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "toy_parts.py").write_text(TOY)
    (tmp_path / "x.gin").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASSAY_PLUGINS", "toy")
    yield tmp_path
    sys.modules.pop("toy_parts", None)


def assay(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in its own process; the last line of stdout says which of some modules were imported."""
    code = "import sys; from assay.cli import main; code = main(); print(sorted({'jax', 'pydantic'} & set(sys.modules))); sys.exit(code)"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["list", "model"], ["show", "--help"], ["check", "--help"], ["diff", "--help"]]
)
def test_light_verbs_import_no_jax(words: list[str]) -> None:
    done = assay(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_diff_imports_no_jax(toy: Path) -> None:
    (toy / "y.gin").write_text(EXPERIMENT.replace("layers = 2", "layers = 3"))
    done = assay("diff", "x.gin", "y.gin")
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["~ model.toy.layers: 2 (int) -> 3 (int)", "[]"]


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb, line in VERBS.items():
        assert f"  {verb:<9} {line}\n" in shown


@pytest.mark.parametrize("verb", ["list", "show", "check", "config", "diff"])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: assay {verb}" in shown
    assert f"example:\n  assay {verb} " in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"assay {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "no verb 'lst'. Did you mean 'list'?"),
        (["--quiet"], "unrecognized arguments: --quiet"),
        (["show"], "required: KIND.NAME"),
        (["list", "model", "x"], "unrecognized arguments: x"),
    ],
)
def test_wrong_usage_is_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_no_words_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "verbs:" in capsys.readouterr().out


def verb_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        raise error

    module = ModuleType("assay.cli.runs")
    module.__dict__.update(HELP="h", EXAMPLE="assay runs", add_arguments=lambda parser: None, run=run)
    monkeypatch.setitem(sys.modules, "assay.cli.runs", module)


def test_the_users_errors_are_1_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_raising(RunError("no run there"), monkeypatch)
    assert main(["runs"]) == 1
    assert capsys.readouterr().err == "assay: no run there\n"


def test_interruption_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_raising(KeyboardInterrupt(), monkeypatch)
    assert main(["runs"]) == 130


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_raising(ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["runs"])


def test_a_reader_that_leaves_is_no_error(toy: Path) -> None:
    (toy / "long.gin").write_text("".join(f"experiment.evaluate_splits = {['x' * 90] * 900}\n" for _ in range(3)))
    command = f"{sys.executable} -c 'from assay.cli import main; raise SystemExit(main())' check long.gin"
    done = subprocess.run(["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) in (("0", ""), ("1", ""))


def test_list(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "model"]) == 0
    assert capsys.readouterr().out == "KIND   NAME  PACKAGE  VERSION\nmodel  toy   toy      1.5\n"
    assert main(["list", "modle"]) == 1
    assert "Did you mean 'model'?" in capsys.readouterr().err


def test_show(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "model.toy"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model.toy  (toy 1.5)",
        "toy_parts.py:5",
        "",
        "model.toy.layers  int                required",
        "model.toy.act     Literal['a', 'b']  = 'a'",
        "",
        "A toy.",
    ]
    assert main(["show", "model.tpy"]) == 1
    assert "Did you mean 'model.toy'?" in capsys.readouterr().err
    assert main(["show", "model"]) == 1
    assert main(["show", "experiment"]) == 0


def test_check(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "x.gin"]) == 0
    assert capsys.readouterr().out == "x.gin: ok\n"
    assert main(["check", "x.gin", "nowhere.gin"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "x.gin: ok"
    assert main(["check", "x.gin", "--set", "model.toy.act=c"]) == 1
    assert capsys.readouterr().out == "--set model.toy.act=c: model.toy.act expects 'a' or 'b', got 'c' (str)\n"


def test_config_prints_a_gin_file_with_places(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "x.gin", "--set", "experiment.keep_best=validation/loss"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["model.toy.layers", "=", "2", "#", "x.gin:8"] in lines
    assert ["model.toy.act", "=", "'a'", "#", "default"] in lines
    assert ["experiment.keep_best", "=", "'validation/loss'", "#", "--set"] in lines
    (toy / "again.gin").write_text(shown)
    assert main(["check", "again.gin"]) == 0
    assert main(["config", "x.gin", "--set", "model.toy.layers=two"]) == 1


def test_diff_of_files_and_of_runs(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "y.gin").write_text("N = 2.0\n" + EXPERIMENT.replace("layers = 2", "layers = %N") + "model.toy.act = 'b'\n")
    for run, act in (("one", "'a'"), ("two", "'b'")):
        (toy / run).mkdir()
        (toy / run / "config.gin").write_text(EXPERIMENT)
        (toy / run / "operative.gin").write_text(EXPERIMENT + f"model.toy.act = {act}\n")
    assert main(["diff", "x.gin", "x.gin"]) == 0
    assert main(["diff", "x.gin", "one"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["diff", "x.gin", "y.gin"]) == 1
    expected = ["+ model.toy.act = 'b' (str)", "~ model.toy.layers: 2 (int) -> 2.0 (float)"]
    assert capsys.readouterr().out.splitlines() == expected
    assert main(["diff", "one", "two"]) == 1
    assert capsys.readouterr().out == "~ model.toy.act: 'a' (str) -> 'b' (str)\n"
    (toy / "empty").mkdir()
    assert main(["diff", "x.gin", "empty"]) == 1
    assert "empty is no run directory: it has no config.gin" in capsys.readouterr().err
    assert main(["diff", "x.gin", str(BROKEN / "garbage.gin")]) == 1
    assert os.linesep.join(capsys.readouterr().err.splitlines()[:1]).startswith(str(BROKEN / "garbage.gin:2"))
