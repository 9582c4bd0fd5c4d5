"""What users and plugins rely on, as files: the help of every verb, the public names, the resolved experiments.

A change that is meant is recorded with `ASSAY_UPDATE_GOLDEN=1 python -m pytest tests/meta/test_golden.py`, and seen in the diff.
"""

import dataclasses
import importlib
import inspect
import os
import types
from pathlib import Path
from typing import Any

import pytest

from assay import config
from assay.cli import main
from assay.cli.main import VERBS

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
EXPERIMENTS = sorted(ROOT.glob("experiments/*.gin"))
OURS = ("export", "artifact", "predict", "bench")  # of assay_export, by way of entry points
ACTIONS = ("plugin new", "plugin check", "artifact show", "artifact verify", "artifact refresh")
OVERRIDES = {"lm_shakespeare_shape": ["dataset.text_files.files=README.md"]}  # its own text is not in the repository
MODULES = (
    "assay.kinds",
    "assay.experiment",
    "assay.outcome",
    "assay.network",
    "assay.imported",
    "assay.exported",
    "assay.errors",
    "assay.registry",
    "assay.config",
    "assay.data.spec",
    "assay.data.arrays",
    "assay.evaluate.sample",
    "assay.parallel.axes",
    "assay.parallel.constrain",
    "assay.parallel.per_device",
    "assay.testing",
    "assay_kernels",
    "assay_kernels.testing",
)


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("ASSAY_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"tests/golden/{name} differs; see this file's docstring"


def test_the_help_of_every_verb(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for words in ([], *([verb] for verb in (*VERBS, *OURS)), *(verb.split() for verb in ACTIONS)):
        assert main([*words, "--help"]) == 0
        print("-" * 120)
    compare("help.txt", capsys.readouterr().out)


def test_the_public_names_and_their_signatures() -> None:
    compare("api.txt", "\n".join(line for name in MODULES for line in described(name)) + "\n")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_resolved_experiment(file: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = config.load(file.relative_to(ROOT), OVERRIDES.get(file.stem, ()))
    compare(f"experiments/{file.stem}.txt", "".join(f"{k} = {v!r}\n" for k, v in sorted(loaded.values.items())))


def test_no_golden_experiment_is_left_over() -> None:
    assert {p.stem for p in GOLDEN.glob("experiments/*.txt")} == {p.stem for p in EXPERIMENTS}


def described(name: str) -> list[str]:
    """A module's public names: those of __all__, or those defined in it."""
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    names = exported or [
        n
        for n, v in vars(module).items()
        if not n.startswith("_") and n != "TYPE_CHECKING" and getattr(v, "__module__", name) == name
    ]
    found = [(n, getattr(module, n)) for n in sorted(names) if not isinstance(getattr(module, n), types.ModuleType)]
    return [f"{name}.{n}{form(value)}" for n, value in found]


def form(value: Any) -> str:
    """A signature, a class's fields and methods, or a constant's type."""
    if inspect.isclass(value):
        fields = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        own = [n for n, v in vars(value).items() if not n.startswith("_") and (callable(v) or isinstance(v, property))]
        return f": class ({', '.join(fields)}) " + ", ".join(sorted(own))
    if callable(value):
        signature = inspect.signature(value)  # without annotations, which print differently by version
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return f": {type(value).__name__}"
