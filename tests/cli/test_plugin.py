"""`assay plugin` and `assay import`: packages of new plugins that pass everything at once, checks with an exit code, models written."""

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

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


def done(python: Path, *words: str, cwd: Path) -> str:
    """The output of a module, which must succeed."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUMPY_RANK_PROMOTION"}
    flags = os.environ["XLA_FLAGS"].split()
    environment["XLA_FLAGS"] = " ".join(f for f in flags if "device_count" not in f)  # that one is the package's own
    found = subprocess.run(
        [python, "-m", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow  # an environment, and then each package's own tools
def test_new_packages_are_listed_and_clean(packages) -> None:
    place, python = packages
    listed = done(python, "assay.cli", "list", cwd=place)
    assert [name for kind, name in NAMES.items() if f"{kind:<11}  {name}" not in listed] == []
    done(python, "ruff", "check", ".", cwd=place)
    done(python, "ruff", "format", "--check", ".", cwd=place)
    for name in NAMES.values():
        done(python, "mypy", "--cache-dir", str(place / "mypy"), cwd=place / name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_new_package_passes_its_own_tests(kind, packages) -> None:
    place, python = packages
    out = done(python, "pytest", "-q", "-W", "error", cwd=place / NAMES[kind])
    assert " passed" in out.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in NAMES if k not in ("importer", "exporter", "transform")])
def test_a_new_package_s_experiment_runs(kind, packages) -> None:
    place, python = packages
    steps = ("--set", "experiment.steps=4", "--set", "experiment.log_every=2", "--root", str(place / "runs"))
    out = done(python, "assay.cli", "run", f"{NAMES[kind]}.gin", *steps, cwd=place / NAMES[kind])
    assert out.startswith("validation/loss ")
