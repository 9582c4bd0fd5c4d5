"""`assay plugin` and `assay import`: packages of new plugins that pass everything at once, checks with an exit code, models written."""

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file

from assay import registry
from assay.cli import main
from assay.errors import ConfigError
from assay.imported import Imported
from assay.kinds import KINDS
from assay.templates import package
from assay_plugins.models.mlp import MLP

NAMES = {kind.name: f"my_{kind.name}" for kind in KINDS}
TRAINED = [kind for kind in NAMES if kind not in ("importer", "exporter", "transform")]
"""The kinds whose packages have an experiment."""
STEPS = ("--set", "experiment.steps=4", "--set", "experiment.log_every=2", "--root", "../runs")
EXPERIMENTS = f"""
import contextlib, io, json, sys
from assay.cli import main

found = []
for name in sys.argv[1:]:
    print(name, file=sys.stderr)
    with contextlib.chdir(name), contextlib.redirect_stdout(io.StringIO()) as out:
        found.append((main(["run", f"{{name}}.gin", *{STEPS}]), out.getvalue()))
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide(MLP):
    """Declares a wrong count of parameters, and needs a parameter."""

    extra: int

    def parameter_count(self, spec) -> int:
        return self.extra


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """Reads arrays of an .npz file as model.mlp's."""

    def read(self, path: Path) -> Imported:
        with np.load(path) as found:
            arrays = {name: found[name] for name in found.files}
        if "bad" in arrays:
            raise ConfigError(f"{path}: bad cannot be represented")
        return Imported("experiment.model = @model.mlp()\n", arrays, notes=["nothing left out"])


def test_a_plugin_that_passes_gives_a_line_for_each_check_and_0(capsys) -> None:
    assert main(["plugin", "check", "model.mlp"]) == 0
    out = capsys.readouterr().out
    assert "ok        compiled_equals_eager: jit changes the output no more than rounding does" in out
    assert out.splitlines()[-1].startswith("model.mlp: 11 passed, 2 skipped")


def test_a_plugin_that_fails_gives_1_and_says_what_was_found(tmp_path, capsys) -> None:
    file = tmp_path / "x.gin"
    file.write_text(package._experiment("model").replace("my_plugin", "wide") + "model.wide.extra = 7\n")
    with registry.temporary("model", "wide", Wide):
        assert main(["plugin", "check", "model.wide", "--experiment", str(file)]) == 1
    assert "FAILED    the_parameter_count_is_as_declared" in (out := capsys.readouterr().out)
    assert "declared are 7 parameters, there are 85,002" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "mlp"], "'mlp' is not the name of a plugin: write KIND.NAME"),
        (["check", "model.mpl"], "Did you mean 'model.mlp'?"),
        (["check", "model.wide"], "model.wide needs extra: name an experiment that uses it, with --experiment X.gin"),
        (["new", "class", "--kind", "model"], "'class' cannot name a plugin"),
        (["new", "Big", "--kind", "model"], "'Big' cannot name a plugin"),
        (["new", "assay", "--kind", "model"], "'assay' cannot name the plugin's package"),
        (["new", "mine", "--kind", "modle"], "no plugin kind 'modle'. Kinds: model, dataset"),
        (["new", "there", "--kind", "model"], "there exists already"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with registry.temporary("model", "wide", Wide):
        assert main(["plugin", *words]) == 1
    assert message in (err := capsys.readouterr().err)
    assert len(err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_an_imported_model_is_written_whole(tmp_path, capsys) -> None:
    np.savez(tmp_path / "net.npz", **{"head/bias": np.arange(3, dtype=np.float32)})
    with registry.temporary("importer", "numbers", Numbers):
        assert main(["import", "numbers", str(tmp_path / "net.npz"), "--to", str(tmp_path / "new/net")]) == 0
    assert "1 arrays, 3 parameters" in capsys.readouterr().out
    assert (tmp_path / "new/net/model.gin").read_text() == "experiment.model = @model.mlp()\n"
    assert load_file(tmp_path / "new/net/parameters.safetensors")["head/bias"].tolist() == [0.0, 1.0, 2.0]
    assert json.loads((tmp_path / "new/net/origin.json").read_text())["notes"] == ["nothing left out"]


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        ("nothing.npz", "new", "nothing.npz does not exist"),
        ("bad.npz", "new", "bad cannot be represented"),
        ("bad.npz", "bad.npz", "bad.npz exists already"),
    ],
)
def test_an_import_that_fails_leaves_nothing(path, to, message, tmp_path, capsys) -> None:
    np.savez(tmp_path / "bad.npz", bad=np.zeros(1))
    with registry.temporary("importer", "numbers", Numbers):
        assert main(["import", "numbers", str(tmp_path / path), "--to", str(tmp_path / to)]) == 1
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.npz"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A package of every kind, installed into an environment on top of this one: (directory, its Python)."""
    place = tmp_path_factory.mktemp("packages")
    for kind, name in NAMES.items():
        assert main(["plugin", "new", name, "--kind", kind, "--to", str(place)]) == 0
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python = place / "venv/bin/python"
    site = sysconfig.get_path("purelib", vars={"base": str(place / "venv"), "platbase": str(place / "venv")})
    (Path(site) / "parent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    editable = [word for name in NAMES.values() for word in ("-e", str(place / name))]
    command = ["uv", "pip", "install", "--offline", "--no-deps", "--no-build-isolation", "--python", python, *editable]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return place, python


def done(python: Path, *words: str, cwd: Path, codes: tuple[int, ...] = (0,)) -> str:
    """The output of a module, which must end with one of `codes`."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUMPY_RANK_PROMOTION"}
    flags = os.environ["XLA_FLAGS"].split()
    environment["XLA_FLAGS"] = " ".join(f for f in flags if "device_count" not in f)  # that one is the package's own
    found = subprocess.run(
        [python, "-m", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert found.returncode in codes, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def tested(packages) -> dict[str, list[ElementTree.Element]]:
    """Kind -> the tests of its package. One process ran them all: it imports jax once."""
    place, python = packages
    report = place / "report.xml"
    words = ("-q", "-W", "error", "--import-mode=importlib", f"--rootdir={place.parent}", f"--junit-xml={report}")
    done(python, "pytest", *words, *(f"{name}/tests" for name in NAMES.values()), cwd=place, codes=(0, 1))
    cases = list(ElementTree.parse(report).iter("testcase"))
    return {k: [c for c in cases if f".{name}." in c.attrib["classname"]] for k, name in NAMES.items()}


@pytest.fixture(scope="module")
def ran(packages) -> dict[str, tuple[int, str]]:
    """Kind -> the exit code and the output of `assay run` of its package's experiment. One process ran them all."""
    place, python = packages
    (place / "experiments.py").write_text(EXPERIMENTS)
    found = json.loads(done(python, "experiments", *(NAMES[kind] for kind in TRAINED), cwd=place))
    return dict(zip(TRAINED, found, strict=True))


@pytest.mark.slow  # an environment, and then each package's own tools
def test_new_packages_are_listed_and_clean(packages) -> None:
    place, python = packages
    listed = done(python, "assay.cli", "list", cwd=place)
    assert [name for kind, name in NAMES.items() if f"{kind:<11}  {name}" not in listed] == []
    done(python, "ruff", "check", *NAMES.values(), cwd=place)
    done(python, "ruff", "format", "--check", *NAMES.values(), cwd=place)
    cache = ("--cache-dir", str(place / "mypy"))
    done(python, "mypy", *cache, cwd=place / "my_model")
    settings = ("--config-file", "my_model/pyproject.toml")
    done(python, "mypy", *cache, *settings, *(f"{name}/src" for name in NAMES.values()), cwd=place)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_new_package_passes_its_own_tests(kind, tested) -> None:
    assert any(len(case) == 0 for case in tested[kind]), "none passed"
    wrong = [case for case in tested[kind] if len(case) and case.find("skipped") is None]
    assert [ElementTree.tostring(case, "unicode") for case in wrong] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_a_new_package_s_experiment_runs(kind, ran) -> None:
    code, out = ran[kind]
    assert code == 0
    assert out.startswith("validation/loss ")


@pytest.mark.slow
def test_the_commands_of_a_new_package_s_readme_work_in_it(packages) -> None:
    place, python = packages
    assert " passed" in done(python, "pytest", "-q", "-W", "error", cwd=place / "my_schedule").splitlines()[-1]
    out = done(python, "assay.cli", "run", "my_schedule.gin", *STEPS, cwd=place / "my_schedule")
    assert out.startswith("validation/loss ")
