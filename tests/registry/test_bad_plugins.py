"""Plugins that cannot be used, as installed packages: each message names the package and says what to do."""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assay import __version__, registry
from assay.cli import main
from assay.errors import PluginError

GOOD = "class Model:\n    def __init__(self, *, layers: int = 1) -> None: ...\n"
AUTHORS = r"update or uninstall toy-bad\."


@dataclasses.dataclass(frozen=True)
class Bad:
    """What is wrong, in the code, the entry point or the requirements, and words of the message. listed: seen without an import."""

    says: tuple[str, ...]
    code: str = GOOD
    target: str = "toy_bad:Model"
    requires: tuple[str, ...] = ()
    listed: bool = False


def another(requirement: str) -> tuple[str, ...]:
    return (
        rf"toy-bad 1\.5 was made for another Assay: it requires {re.escape(requirement)}, and Assay {__version__} is installed",
        rf"install a version of toy-bad made for Assay {__version__}, or `pip install '{re.escape(requirement)}'`",
    )


CASES = {
    "no annotation": Bad(
        (r"toy-bad 1\.5", "its parameter 'layers' has no annotation; annotate it with its type"),
        GOOD.replace(": int", ""),
    ),
    "an annotation that cannot be resolved": Bad(
        (r"toy-bad 1\.5", "name 'Depth' is not defined; import the type at run time"), GOOD.replace("int", "'Depth'")
    ),
    "keywords": Bad(
        (r"toy-bad 1\.5", r"takes \*\*kwargs: int; a plugin names every parameter"),
        GOOD.replace("*, layers: int = 1", "**kwargs: int"),
    ),
    "no class": Bad((r"toy-bad 1\.5", "a plugin is a class or a function"), "Model = 3\n"),
    "no such module": Bad(
        (
            r"of toy-bad 1\.5",
            "No module named 'toy_elsewhere'",
            f"Correct the module in the entry point .*, or {AUTHORS}",
        ),
        target="toy_elsewhere.models:Model",
    ),
    "no such attribute": Bad(
        (r"of toy-bad 1\.5", r"has no attribute 'Modle'\. Did you mean 'Model'\? Correct the entry point", AUTHORS),
        target="toy_bad:Modle",
    ),
    "no entry point": Bad(
        (
            "its entry point 'toy bad', of toy-bad 1.5, is not 'module:attribute'; correct it",
            "update or uninstall toy-bad",
        ),
        target="toy bad",
        listed=True,
    ),
    "what it needs is not there": Bad(
        (r"of toy-bad 1\.5", "No module named 'toy_nowhere'", f"Install what it needs, or {AUTHORS}"),
        "import toy_nowhere\n" + GOOD,
    ),
    "an error in its module": Bad(
        (r"of toy-bad 1\.5", r"ZeroDivisionError: division by zero\. Correct toy_bad, or " + AUTHORS), "1 / 0\n" + GOOD
    ),
    "a wrong attribute in its module": Bad(
        (r"of toy-bad 1\.5", r"has no attribute 'sqroot'\. Correct toy_bad, or " + AUTHORS),
        "import math\nmath.sqroot(2)\n" + GOOD,
    ),
    "made for an older Assay": Bad(another("assay<0.1"), requires=("numpy", "assay<0.1"), listed=True),
    "made for a newer Assay": Bad(another("assay>=2"), requires=("assay>=2 ; python_version >= '3.11'",), listed=True),
    "made for another Assay, its extra spelt out": Bad(
        another("assay~=1.4"), requires=("Assay[hf] (~=1.4)",), listed=True
    ),
}
FITTING = [
    "assay",
    f"assay=={__version__}",
    "assay>=0.0.1,<100",
    "assay>=2 ; extra == 'next'",
    "assay>=2 ; python_version < '3'",
    "assay-tools>=2",
    "assay @ https://example.org/assay.whl",
    "assay is not a requirement",
]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a package with one model on sys.path, as pip would have installed it."""

    def make(bad: Bad, name: str = "toy-bad") -> None:
        root, module = tmp_path / name, name.replace("-", "_")
        info = root / f"{module}-1.5.dist-info"
        info.mkdir(parents=True)
        requires = "".join(f"Requires-Dist: {line}\n" for line in bad.requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{requires}")
        (info / "entry_points.txt").write_text(f"[assay.model]\nmine = {bad.target}\n")
        (root / f"{module}.py").write_text(bad.code)
        monkeypatch.syspath_prepend(str(root))

    yield make
    for module in [m for m in sys.modules if m.startswith("toy_")]:
        del sys.modules[module]


@pytest.mark.parametrize("case", CASES)
def test_a_bad_plugin_names_its_package_and_says_what_to_do(
    case: str, install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(CASES[case])
    with pytest.raises(PluginError) as caught:
        registry.load("model", "mine")
    message = str(caught.value)
    assert message.startswith("model.mine")
    assert [words for words in CASES[case].says if not re.search(words, message)] == []
    assert main(["list", "model"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " toy-bad " in line]
    assert ("broken: " in line) == CASES[case].listed
    assert registry.load("model", "mlp")


@pytest.mark.parametrize("case", [name for name, bad in CASES.items() if bad.listed])
def test_what_metadata_tell_is_known_without_an_import(case: str, install: Callable[..., None]) -> None:
    install(CASES[case])
    (entry,) = [e for e in registry.entries("model") if e.name == "mine"]
    assert re.search(CASES[case].says[0], entry.problem)
    assert "toy_bad" not in sys.modules


@pytest.mark.parametrize("requirement", FITTING)
def test_a_requirement_that_this_assay_meets_is_no_problem(requirement: str, install: Callable[..., None]) -> None:
    install(Bad((), requires=(requirement,)))
    assert registry.load("model", "mine").__name__ == "Model"


def test_two_packages_with_one_name_are_both_named(install: Callable[..., None]) -> None:
    install(Bad(()))
    install(Bad((), target="toy_other:Model"), "toy-other")
    words = r"model\.mine: declared by toy-bad 1\.5 and by toy-other 1\.5; uninstall one of them, or choose one with .* ASSAY_PLUGINS"
    with pytest.raises(PluginError, match=words):
        registry.load("model", "mine")


def test_an_experiment_that_names_such_a_plugin_says_where(
    install: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(CASES["made for a newer Assay"])
    file = tmp_path / "x.gin"
    file.write_text("experiment.model = @model.mine()\n")
    assert main(["check", str(file)]) == 1
    assert f"{file}:1: model.mine: toy-bad 1.5 was made for another Assay" in capsys.readouterr().out
