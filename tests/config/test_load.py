"""Loading: values, scopes, includes, records, overrides, and gin left clean."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import config, registry
from assay.config.values import text
from assay.errors import ConfigError

BASE = Path(__file__).parent / "good" / "base.gin"
HEAD = f"include '{BASE}'\n"


def load(content: str, tmp_path: Path, overrides: Sequence[str] = ()) -> config.Loaded:
    (tmp_path / "x.gin").write_text(HEAD + content)
    return config.load(tmp_path / "x.gin", overrides)


def assert_recorded(loaded: config.Loaded) -> None:
    """Both records give an equal experiment again, and their own records are the same."""
    for record in (loaded.flat, loaded.operative):
        again = config.load_text(record)
        assert again.experiment == loaded.experiment
        assert again.operative == loaded.operative
    json.dumps(loaded.values, allow_nan=False)


def test_values_defaults_and_places(tmp_path: Path) -> None:
    loaded = load("N = 3\nmodel.transformer.layers = %N\n", tmp_path, ["model.transformer.activation=relu"])
    assert loaded.experiment.model.layers == 3
    assert loaded.values["model.transformer.layers"] == 3
    assert loaded.values["experiment.model"] == "@model.transformer()"
    assert loaded.values["optimizer.adamw.betas"] == [0.9, 0.95]
    assert loaded.where("model.transformer.layers") == f"{tmp_path / 'x.gin'}:3"
    assert loaded.where("experiment.steps") == f"{BASE}:7"
    assert loaded.where("model.transformer.activation") == "--set"
    assert loaded.where("model.transformer.width") == "default"
    assert [e.selector for e in loaded.plugins] == [
        "dataset.text_files",
        "model.transformer",
        "objective.next_token",
        "optimizer.adamw",
        "parallelism.data_parallel",
        "tokenizer.bpe",
    ]
    assert_recorded(loaded)
    with pytest.raises(ConfigError, match=r"Did you mean 'experiment\.steps'"):
        loaded.where("experiment.stps")


def test_values_take_the_types_of_their_parameters(tmp_path: Path) -> None:
    loaded = load("optimizer.adamw.learning_rate = 1\noptimizer.adamw.betas = [0, 1]\n", tmp_path)
    optimizer: Any = loaded.experiment.optimizer
    assert (type(optimizer.learning_rate), optimizer.betas, type(optimizer.betas[0])) == (float, (0.0, 1.0), float)
    assert "optimizer.adamw.learning_rate = 1\n" in loaded.flat
    assert "optimizer.adamw.learning_rate = 1.0\n" in loaded.operative
    assert_recorded(loaded)


SCOPES = """
experiment.dataset = @dataset.mixture()
dataset.mixture.parts = [@code/dataset.text_files(), @prose/dataset.text_files(), @prose/short/dataset.text_files(), %OTHER]
OTHER = @dataset.text_files()
dataset.text_files.context = 16
code/dataset.text_files.files = ['x.py']
prose/dataset.text_files.context = 32
prose/short/dataset.text_files.name = 'short'
code/tokenizer.bpe.vocab_size = 300
"""


def test_scopes_work_as_in_gin(tmp_path: Path) -> None:
    loaded = load(SCOPES, tmp_path)
    code, prose, short, other = loaded.experiment.dataset.parts
    assert (code.files, code.context, code.tokenizer.vocab_size) == (("x.py",), 16, 300)
    assert (prose.files, prose.context, prose.name, prose.tokenizer.vocab_size) == ("a.txt", 32, None, 512)
    assert (short.context, short.name) == (32, "short")
    assert (other.context, other.name) == (16, None)
    assert loaded.values["code/tokenizer.bpe.vocab_size"] == 300
    assert loaded.values["prose/short/dataset.text_files.context"] == 32
    assert_recorded(loaded)


def test_macro_as_scope_is_gins_own_rule(tmp_path: Path) -> None:
    """gin builds what a macro refers to within a scope of the macro's name."""
    loaded = load("M = @model.transformer()\nexperiment.model = %M\nM/model.transformer.layers = 7\n", tmp_path)
    assert loaded.experiment.model.layers == 7
    assert_recorded(loaded)


def test_an_unbound_scope_within_a_bound_one_stays_apart(tmp_path: Path) -> None:
    content = (
        "experiment.dataset = @train/dataset.text_files()\ndataset.text_files.tokenizer = @free/tokenizer.bpe()\n"
        "train/dataset.text_files.context = 8\ntrain/tokenizer.bpe.vocab_size = 300\n"
    )
    loaded = load(content, tmp_path)
    assert loaded.experiment.dataset.tokenizer.vocab_size == 512
    assert loaded.unused() == [f"{tmp_path / 'x.gin'}:5: train/tokenizer.bpe.vocab_size"]
    assert_recorded(loaded)


def test_names_do_not_depend_on_bindings_without_effect(tmp_path: Path) -> None:
    """The scope is bound for the model, which is not built in it; so it says nothing of the dataset."""
    loaded = load("experiment.dataset = @a/dataset.text_files()\na/model.transformer.width = 8\n", tmp_path)
    assert loaded.values["dataset.text_files.files"] == "a.txt"
    assert len(loaded.unused()) == 1
    assert_recorded(loaded)


def test_what_an_override_makes_superfluous_is_unused_and_no_mistake(tmp_path: Path) -> None:
    loaded = load("", tmp_path, ["experiment.dataset=@dataset.digits()"])
    assert loaded.unused() == [f"{BASE}:10: dataset.text_files.files", f"{BASE}:11: dataset.text_files.tokenizer"]
    assert_recorded(loaded)


def test_functions_are_plugins_too(tmp_path: Path) -> None:
    content = (
        "optimizer.adamw.learning_rate = @schedule.linear()\nschedule.linear.peak = 1\nschedule.linear.end = 0.5\n"
    )
    loaded = load(content, tmp_path)
    assert loaded.experiment.optimizer.learning_rate.peak == 1.5
    assert loaded.values["schedule.linear.warmup_steps"] == 0
    assert_recorded(loaded)


def test_includes_from_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fragments_of_toy" / "models"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise AssertionError('an include must not import')\n")
    (package / "small.gin").write_text("model.transformer.width = 8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load(
        "include 'fragments_of_toy/models/small.gin'\n", tmp_path / "fragments_of_toy", ["model.transformer.width=12"]
    )
    assert loaded.experiment.model.width == 12
    assert_recorded(loaded)


def test_a_macro_can_be_required_and_given(tmp_path: Path) -> None:
    loaded = load("N = %gin.REQUIRED\nmodel.transformer.layers = %N\n", tmp_path, ["N=9"])
    assert loaded.experiment.model.layers == 9
    assert_recorded(loaded)


def test_several_experiments_and_replaced_plugins_in_one_process() -> None:
    first = config.load(BASE)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other:
        layers: int
        depth: int = 3

        def build(self, spec: Any, rngs: Any) -> None: ...

    with registry.temporary("model", "transformer", Other):
        second = config.load(BASE, ["model.transformer.depth=4"])
    assert type(second.experiment.model) is Other
    assert second.experiment.model.depth == 4
    assert config.load(BASE).experiment == first.experiment
    assert gin.config_str().strip() == ""
    assert not gin.config_is_locked()


def test_another_plugin_of_the_same_name_does_not_spoil_a_record() -> None:
    """gin's own record names plugins as briefly as it can, which another plugin can make ambiguous."""
    loaded = config.load(BASE)

    @dataclasses.dataclass(frozen=True)
    class Namesake:
        layers: int = 1

        def fit(self) -> None: ...

        identity = restore = save = fit

    with registry.temporary("tokenizer", "transformer", Namesake), registry.temporary("model", "experiment", Namesake):
        config.check(
            BASE, ["dataset.text_files.tokenizer=@tokenizer.transformer()", "experiment.model=@model.experiment()"]
        )
        assert config.load_text(loaded.operative).experiment == loaded.experiment


def test_the_opening_comment_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.gin").write_text("# Question: why?\n# Cost: none.\n\n# Not this.\n" + HEAD)
    assert config.load(tmp_path / "x.gin").flat.startswith("# Question: why?\n# Cost: none.\nexperiment.model")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("experiment.keep_best=validation/loss", "experiment.keep_best", "validation/loss"),
        ("experiment.keep_best=+validation/accuracy", "experiment.keep_best", "+validation/accuracy"),
        ("experiment.keep_best='a'", "experiment.keep_best", "a"),
        ("experiment.keep_best=None", "experiment.keep_best", None),
        ("experiment.keep_best=3", "experiment.keep_best", "3"),
        ("experiment.compute_dtype=bfloat16", "experiment.compute_dtype", "bfloat16"),
        ("experiment.steps_per_dispatch=auto", "experiment.steps_per_dispatch", "auto"),
        ("experiment.steps_per_dispatch=3", "experiment.steps_per_dispatch", 3),
        ("dataset.text_files.files=a b/*.txt", "dataset.text_files.files", "a b/*.txt"),
        ("dataset.text_files.files=['a', 'b']", "dataset.text_files.files", ["a", "b"]),
        ("dataset.text_files.files=x=1.txt", "dataset.text_files.files", "x=1.txt"),
        ("optimizer.adamw.learning_rate=3e-4", "optimizer.adamw.learning_rate", 3e-4),
        ("experiment.evaluate_splits=['test']", "experiment.evaluate_splits", ["test"]),
        ("FILES=c.txt", "dataset.text_files.files", "c.txt"),
    ],
)
def test_overrides_need_no_quotes(override: str, key: str, value: Any, tmp_path: Path) -> None:
    loaded = load("FILES = 'b.txt'\ndataset.text_files.files = %FILES\n", tmp_path, [override])
    assert loaded.values[key] == value
    assert loaded.where(key) == ("--set" if key in override else f"{tmp_path / 'x.gin'}:3")
    assert_recorded(loaded)


@settings(max_examples=50)
@given(st.text())
def test_any_text_can_be_set_where_text_is_taken(content: str) -> None:
    """What gin reads as a literal text or None keeps that meaning; everything else, stripped, is the text itself."""
    found = config.load(BASE, [f"dataset.text_files.name={text(content)}"])
    assert found.experiment.dataset.name == content
    bare = config.load(BASE, [f"dataset.text_files.name=a{content}a"])
    assert bare.experiment.dataset.name == f"a{content}a".strip()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
LITERALS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(LITERALS)
def test_every_literal_survives_both_records(value: Any) -> None:
    loaded = config.load_text(
        BASE.read_text().replace("@model.transformer()", "@model.mlp()").replace("model.transformer.layers = 2", "")
        + f"model.mlp.anything = {text(value)}\n"
    )
    assert loaded.experiment.model.anything == value
    assert_recorded(loaded)
