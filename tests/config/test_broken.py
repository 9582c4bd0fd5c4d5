"""Every mistake planted in broken/*.gin is reported at its place, and nothing else is.

A file declares what it expects at its end, one comment a problem: `# expect: LINE: message`, or with the file's name before the
line where the problem is in a file that it includes. `…` at the end of a message stands for the rest.
"""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import config, registry
from assay.errors import ConfigError

HERE = Path(__file__).parent
FILES = sorted((HERE / "broken").glob("*.gin"))


def expected(file: Path) -> list[str]:
    """The declared problems as they are printed, without the folder."""
    found = re.findall(r"^# expect: (?:([\w./]+\.gin):)?(\d+): (.*)$", file.read_text(), re.MULTILINE)
    return [f"{name or file.name}:{line}: {message}" for name, line, message in found]


def reported(file: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    return [str(problem).replace(f"{file.parent}{os.sep}", "") for problem in config.check(file, overrides)]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_planted_mistake_is_reported_and_nothing_else(file: Path) -> None:
    assert expected(file), "declares no mistake"
    problems = reported(file)
    for i, wanted in enumerate(expected(file)):
        if wanted.endswith("…") and i < len(problems) and problems[i].startswith(wanted[:-1]):
            problems[i] = wanted
    assert problems == expected(file)


def test_the_corpus_is_large_and_quick() -> None:
    assert len(FILES) >= 40
    config.check(FILES[0])  # pydantic is imported with the first one
    start = time.process_time()
    for file in FILES:
        config.check(file)
    assert time.process_time() - start < 6  # 0.4 on a busy machine


@pytest.mark.parametrize("file", sorted((HERE / "good").glob("*.gin")), ids=lambda f: f.stem)
def test_good_files_have_no_problem(file: Path) -> None:
    missing = ["experiment.dataset=@dataset.digits()"] if file.stem == "bare" else []
    assert config.check(file, missing) == []


def test_load_raises_one_picklable_error_with_every_mistake() -> None:
    file = HERE / "broken" / "plugin_value_out_of_range.gin"
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is ConfigError
    assert str(again).replace(f"{file.parent}{os.sep}", "").splitlines() == expected(file)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_crashing_constructor_is_a_problem_with_its_cause() -> None:
    with pytest.raises(ConfigError, match=r"model\.crash: cannot be built: KeyError: 1") as caught:
        config.load(HERE / "good" / "base.gin", ["experiment.model=@model.crash()"])
    assert type(caught.value.__cause__) is KeyError


def test_a_constructor_that_says_nothing_is_a_problem_too() -> None:
    def mute() -> None:
        raise ValueError

    with registry.temporary("model", "mute", mute):
        problems = config.check(HERE / "good" / "base.gin", ["experiment.model=@model.mute()"])
    assert [p.message for p in problems] == ["model.mute: cannot be built: ValueError:"]


def test_a_file_that_is_not_there() -> None:
    problems = config.check("nowhere.gin")
    assert [str(p) for p in problems] == [
        "nowhere.gin: cannot read nowhere.gin: No such file or directory. Give the path of a gin file."
    ]


@pytest.mark.parametrize("content", [b"experiment.steps = \xff\n", b"experiment.steps = 1 # \0\n"])
def test_bytes_that_are_no_text(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gin").write_bytes(content)
    assert "x.gin: it is not " in str(config.check(tmp_path / "x.gin")[0])


@settings(max_examples=50)
@given(st.data())
def test_no_edit_makes_the_check_itself_fail(data: st.DataObject) -> None:
    """Characters put anywhere into a good file give problems with the file's own lines, or nothing; never an exception."""
    content = (HERE / "good" / "base.gin").read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.text("@%()[]{}=:'\",./\\\n #-+*x9", max_size=3)) + content[at:]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.gin"
        file.write_text(content)
        assert all(p.file == str(file) and 0 <= p.line <= content.count("\n") + 1 for p in config.check(file))


@pytest.mark.parametrize(
    "override",
    [
        ("experiment.steps=many", "experiment.steps expects int, got 'many' (str)"),
        ("experiment.steps='3'", "experiment.steps expects int, got '3' (str)"),
        ("experiment.step=3", "experiment has no parameter 'step'. Did you mean 'steps'?"),
        ("model.transfomer.layers=3", "no plugin 'model.transfomer'. Did you mean 'model.transformer'?"),
        (
            "model.mlp.widths=[3]",
            "nothing refers to model.mlp, so binding its parameters has no effect. Refer to it, as in ",
        ),
        ("DEPTH=3", "no macro 'DEPTH' to set. Write a whole name, such as experiment.steps."),
        ("experiment.steps", "write --set KEY=VALUE, such as --set experiment.steps=100"),
        ("experiment.steps=2*3", "gin does not compute: write the result of 2*3 instead"),
        ("experiment.model=model.mlp()", "a plugin needs @ before its name: write @model.mlp()"),
        ("evl/model.transformer.layers=2", "scope 'evl' is bound but never referenced."),
    ],
    ids=lambda o: o[0],
)
def test_overrides_are_checked_like_the_file(override: tuple[str, str]) -> None:
    problems = config.check(HERE / "good" / "base.gin", [override[0]])
    assert [str(p).startswith(f"--set {override[0]}: {override[1]}") for p in problems] == [True], problems


def test_an_override_given_twice_is_a_mistake() -> None:
    problems = config.check(HERE / "good" / "base.gin", ["experiment.seed=1", "experiment.seed=2"])
    assert [p.message for p in problems] == [
        "experiment.seed is already bound, at --set experiment.seed=1. Remove one of the two."
    ]


def test_checking_imports_only_named_plugins(tmp_path: Path) -> None:
    """A real distribution in a fresh interpreter: one of its two modules is named by the experiment."""
    for module in ("wanted", "unwanted"):
        (tmp_path / f"{module}.py").write_text("class Model:\n    def build(self, spec, rngs): ...\n")
    info = tmp_path / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[assay.model]\nwanted = wanted:Model\nunwanted = unwanted:Model\n")
    (tmp_path / "x.gin").write_text("experiment.model = @model.wanted()\n")
    code = """
        import sys
        from assay import config, registry
        problems = config.check("x.gin")
        assert len(problems) == 6, problems
        print("wanted" in sys.modules, "unwanted" in sys.modules, "jax" in sys.modules)
    """
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ASSAY_PLUGINS": "toy"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


def test_the_core_needs_no_jax_to_check() -> None:
    assert importlib.util.find_spec("jax") is not None
    code = "import sys, assay.config, assay.config.diff; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
