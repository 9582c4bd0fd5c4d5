"""The catalogue over real metadata on sys.path: what is listed, what is refused, and what gets imported."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assay import registry
from assay.errors import PluginError

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on sys.path: its metadata, and its one module if it has any code."""

    def make(name: str, points: str, code: str = "", version: str = "1.0", folder: str = "") -> Path:
        root = tmp_path / (folder or name)
        info = root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points)
        if code:
            (root / f"{name.replace('-', '_')}.py").write_text(code)
        monkeypatch.syspath_prepend(str(root))
        return root

    yield make
    for module in [m for m in sys.modules if m.startswith("toy_")]:
        del sys.modules[module]


MODEL = "class Model:\n    def __init__(self, *, layers: int = 1) -> None: ...\n"


def test_entries_list_without_importing(install: Install) -> None:
    install("toy-one", "[assay.model]\nmine = toy_one:Model\n", "raise AssertionError('imported')\n")
    entry = next(e for e in registry.entries("model") if e.name == "mine")
    assert (entry.target, entry.distribution, entry.version) == ("toy_one:Model", "toy-one", "1.0")
    assert (entry.selector, entry.origin, entry.problem) == ("model.mine", "toy-one 1.0", "")
    assert "toy_one" not in sys.modules


def test_entries_of_all_kinds_are_in_the_order_of_kinds() -> None:
    kinds = [e.kind for e in registry.entries()]
    assert list(dict.fromkeys(kinds)) == [
        "model",
        "dataset",
        "tokenizer",
        "objective",
        "metric",
        "optimizer",
        "schedule",
        "parallelism",
        "tracker",
        "importer",
        "kernel",
        "exporter",
        "transform",
    ]
    assert [kinds.count(kind) for kind in dict.fromkeys(kinds)] == [len(list(g)) for _, g in itertools.groupby(kinds)]
    assert {"transformer", "mlp"} <= {e.name for e in registry.entries("model")}


def test_unknown_kind_and_name() -> None:
    with pytest.raises(PluginError, match=r"no plugin kind 'modle'\. Did you mean 'model'\?"):
        registry.entries("modle")
    with pytest.raises(PluginError, match=r"no plugin 'model\.transfomer'\. Did you mean 'model\.transformer'\?"):
        registry.load("model", "transfomer")
    with pytest.raises(PluginError, match=r"Did you mean 'optimizer\.adamw'\?"):
        registry.load("schedule", "adamw")
    with pytest.raises(PluginError, match=r"no plugin 'model\.qqq'\. Known: .*transformer"):
        registry.load("model", "qqq")


def test_a_plugin_is_imported_when_it_is_loaded(install: Install) -> None:
    install("toy-two", "[assay.model]\nmine = toy_two:Model\n", MODEL)
    assert registry.load("model", "mine").__name__ == "Model"
    assert "toy_two" in sys.modules


def test_a_broken_plugin_names_its_distribution_and_keeps_its_cause(install: Install) -> None:
    install("toy-broken", "[assay.model]\nmine = toy_broken:Model\n", "import a_module_that_is_nowhere\n")
    with pytest.raises(
        PluginError, match=r"model\.mine \(toy_broken:Model, of toy-broken 1\.0\) cannot be imported"
    ) as caught:
        registry.load("model", "mine")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_missing_attribute_is_a_broken_plugin(install: Install) -> None:
    install("toy-empty", "[assay.model]\nmine = toy_empty:Modle\n", MODEL)
    with pytest.raises(PluginError, match=r"toy-empty 1\.0\) cannot be imported: AttributeError"):
        registry.load("model", "mine")


def test_two_distributions_of_one_name_are_an_error_that_names_both(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("toy-a", "[assay.model]\nmine = toy_a:Model\n", MODEL)
    install("toy-b", "[assay.model]\nmine = toy_b:Model\n", MODEL, version="2.0")
    with pytest.raises(PluginError, match=r"model\.mine: declared by toy-a 1\.0 and by toy-b 2\.0; uninstall one"):
        registry.load("model", "mine")
    assert all("toy-b" in e.problem for e in registry.entries("model") if e.name == "mine")
    monkeypatch.setenv("ASSAY_PLUGINS", "toy_B")
    assert registry.load("model", "mine").__module__ == "toy_b"


def test_one_distribution_seen_twice_is_no_duplicate(install: Install) -> None:
    install("toy-c", "[assay.model]\nmine = toy_c:Model\n", MODEL)
    install("toy-c", "[assay.model]\nmine = toy_c:Model\n", folder="again")
    install("toy_C", "[assay.model]\nmine = toy_c:Model\n", folder="spelt_otherwise")
    assert registry.load("model", "mine").__name__ == "Model"
    assert len([e for e in registry.entries("model") if e.name == "mine"]) == 1


def test_a_name_that_gin_could_not_write(install: Install) -> None:
    install("toy-d", "[assay.model]\nMy-Model = toy_d:Model\n", MODEL)
    entry = next(e for e in registry.entries("model") if e.name == "My-Model")
    assert "is not valid" in entry.problem
    with pytest.raises(PluginError, match="is not valid"):
        registry.load("model", "My-Model")


@pytest.mark.parametrize("allowed", ["toy-e", "Toy_E , other", "model.mine", "model.*", "*.mine"])
def test_the_allowlist_lets_in(allowed: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("toy-e", "[assay.model]\nmine = toy_e:Model\n", MODEL)
    monkeypatch.setenv("ASSAY_PLUGINS", allowed)
    assert "mine" in [e.name for e in registry.entries("model")]
    assert "assay" not in [e.distribution for e in registry.entries("dataset")]


@pytest.mark.parametrize("allowed", ["", "assay", "dataset.mine"])
def test_the_allowlist_keeps_out_and_says_so(allowed: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("toy-f", "[assay.model]\nmine = toy_f:Model\n", MODEL)
    monkeypatch.setenv("ASSAY_PLUGINS", allowed)
    with pytest.raises(PluginError, match=r"toy-f 1\.0 has it, but ASSAY_PLUGINS does not allow it"):
        registry.load("model", "mine")
    assert os.environ["ASSAY_PLUGINS"] == allowed


def test_temporary_plugins_come_and_go() -> None:
    class Mine:
        def __init__(self, layers: int) -> None: ...

    with registry.temporary("model", "transformer", Mine), registry.temporary("model", "other", Mine):
        assert registry.load("model", "transformer") is Mine
        assert registry.find("model", "other").distribution == "(temporary)"
        with registry.temporary("model", "other", dict):
            assert [e.target for e in registry.entries("model") if e.name == "other"] == ["builtins:dict"]
        assert registry.load("model", "other") is Mine
    assert registry.find("model", "transformer").distribution == "assay"
    assert "other" not in [e.name for e in registry.entries("model")]


@pytest.mark.parametrize(("kind", "name"), [("modle", "mine"), ("model", "Mine"), ("model", "a.b")])
def test_temporary_refuses_what_no_file_could_name(kind: str, name: str) -> None:
    with pytest.raises(PluginError), registry.temporary(kind, name, dict):
        pass
