"""Which configuration is taken: the nearest measured shape, whose table comes first, and what is recorded of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from assay_kernels import H200, Op, Target, for_target, recording, tuning


@dataclasses.dataclass(frozen=True)
class Config:
    block: int
    stages: int = 2


RULE = Config(1)
DEVICE = Target("cuda", "NVIDIA Test 1", (9, 0))


def entry(block: int, op: str = "op", implementation: str = "mosaic", **shape: Any) -> dict[str, Any]:
    return {"op": op, "implementation": implementation, "shape": shape, "config": {"block": block}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a table and makes it the user's own."""

    def write(*entries: dict[str, Any], text: str | None = None) -> Path:
        path = tmp_path / "nvidia_test_1.json"
        path.write_text(json.dumps({"entries": entries}) if text is None else text)
        monkeypatch.setenv(tuning.VARIABLE, str(tmp_path))
        return path

    return write


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Writes a table as the package's own."""

    def shipped(*entries: dict[str, Any]) -> None:
        folder = tmp_path / "package" / "data"
        folder.mkdir(parents=True)
        (folder / "nvidia_test_1.json").write_text(json.dumps({"entries": entries}))
        monkeypatch.setattr(tuning.importlib.resources, "files", lambda package: tmp_path / "package")

    return shipped


def block(exact: tuple[str, ...] = (), **shape: Any) -> int:
    with for_target(DEVICE):
        return tuning.tuned("op", "mosaic", shape, exact=exact, otherwise=RULE).block


@pytest.mark.parametrize(("tokens", "expected"), [(1000, 10), (1400, 10), (1500, 20), (2048, 20), (8192, 20)])
def test_the_nearest_shape_by_ratio(write, tokens: int, expected: int) -> None:
    write(entry(10, tokens=1024), entry(20, tokens=2048))
    assert block(tokens=tokens) == expected


def test_distances_add_up_over_all_sizes(write) -> None:
    write(entry(10, tokens=1024, width=1024), entry(20, tokens=4096, width=64))
    assert block(tokens=2048, width=512) == 10
    assert block(tokens=2048, width=64) == 20


@pytest.mark.parametrize(("tokens", "expected"), [(4096, 10), (4097, 1), (256, 10), (255, 1)])
def test_what_is_too_far_away_is_the_rules(write, tokens: int, expected: int) -> None:
    write(entry(10, tokens=1024))
    assert block(tokens=tokens) == expected


def test_exact_keys_and_text_must_be_equal(write) -> None:
    write(entry(10, head_dim=128, dtype="bfloat16"))
    assert block(head_dim=64, dtype="bfloat16") == 10
    assert block(("head_dim",), head_dim=64, dtype="bfloat16") == RULE.block
    assert block(("head_dim",), head_dim=128, dtype="bfloat16") == 10
    assert block(head_dim=128, dtype="float16") == RULE.block


def test_what_cannot_run_here_is_passed_over(write) -> None:
    write(entry(10, tokens=1000), entry(20, tokens=2000), entry(30, tokens=100_000))
    with for_target(DEVICE):
        found = [
            tuning.tuned(
                "op", "mosaic", {"tokens": 1000}, exact=(), otherwise=RULE, fits=lambda c, least=least: c.block > least
            )
            for least in (0, 10, 20)
        ]
    assert [config.block for config in found] == [10, 20, RULE.block]


def test_zero_has_no_ratio(write) -> None:
    write(entry(10, window=0))
    assert block(window=0) == 10
    assert block(window=1) == RULE.block


def test_other_keys_ops_and_implementations_are_not_taken(write) -> None:
    write(entry(10, tokens=8, width=8), entry(20, op="other", tokens=8), entry(30, implementation="cuda", tokens=8))
    assert block(tokens=8) == RULE.block


def test_the_users_table_comes_before_the_shipped_one_and_that_before_the_rule(write, shipped, monkeypatch) -> None:
    shipped(entry(10, tokens=8), entry(11, tokens=1 << 20))
    assert block(tokens=8) == 10
    write(entry(20, tokens=8))
    assert block(tokens=8) == 20
    assert block(tokens=1 << 20) == 11  # which the user's lacks
    assert block(tokens=1 << 10) == RULE.block
    monkeypatch.delenv(tuning.VARIABLE)
    assert block(tokens=8) == 10


def test_other_devices_have_other_tables(write) -> None:
    write(entry(10, tokens=8))
    with for_target(H200):
        assert tuning.tuned("op", "mosaic", {"tokens": 8}, exact=(), otherwise=RULE) == RULE


def test_a_table_that_changes_is_read_again(write) -> None:
    write(entry(10, tokens=8))
    assert block(tokens=8) == 10
    write(entry(20, tokens=8), entry(30, tokens=64))
    assert block(tokens=8) == 20


@pytest.mark.parametrize("text", ["", "[]", '{"entries": 3}', "{", '{"other": []}'])
def test_a_broken_file_is_an_error_that_names_it(write, text: str) -> None:
    path = write(text=text)
    with pytest.raises(ValueError, match="is no table of configurations") as error:
        block(tokens=8)
    assert str(path) in str(error.value)
    assert "python -m assay_kernels.tune" in str(error.value)


def test_an_entry_without_a_part_is_an_error(write) -> None:
    write({"op": "op", "implementation": "mosaic", "shape": {}})
    with pytest.raises(ValueError, match=r"nvidia_test_1\.json: an entry lacks 'config'"):
        block(tokens=8)


def test_a_field_that_the_configuration_lacks_is_an_error(write) -> None:
    write({**entry(10, tokens=8), "config": {"block": 8, "warps": 4}})
    with pytest.raises(ValueError, match="configurations: Config has no field 'warps'"):
        block(tokens=8)


def test_fields_that_an_entry_leaves_out_are_the_rules(write) -> None:
    write(entry(10, tokens=8))
    with for_target(DEVICE):
        assert tuning.tuned("op", "mosaic", {"tokens": 8}, exact=(), otherwise=Config(1, 5)) == Config(10, 5)


def test_the_configuration_and_its_source_are_in_the_choice_and_the_runs_record(write) -> None:
    path = write(entry(10, tokens=8))
    op = Op("op", lambda x: x)

    @op.register("mosaic", supports=lambda target, x: None, priority=1)
    def mosaic(x: jax.Array) -> jax.Array:
        config = tuning.tuned("op", "mosaic", {"tokens": x.shape[0]}, exact=(), otherwise=RULE)
        return x * config.block

    with for_target(DEVICE), recording() as choices:
        for tokens in (8, 8, 4000):
            op(jnp.ones(tokens))
    near, far = choices
    assert [(c.config, c.source) for c in near.configs] == [("Config(block=10, stages=2)", str(path.parent))]
    assert [(c.config, c.source) for c in far.configs] == [("Config(block=1, stages=2)", "rule")]
    assert f"; Config(block=10, stages=2) ({path.parent})" in str(near)
    assert json.loads(json.dumps(far.as_json()))["configs"] == [
        {"config": "Config(block=1, stages=2)", "source": "rule"}
    ]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "nvidia_h200.json"),
        ("NVIDIA H100 80GB HBM3", "nvidia_h100_80gb_hbm3.json"),
        ("NVIDIA A100-SXM4-80GB", "nvidia_a100_sxm4_80gb.json"),
    ],
)
def test_names_of_tables(kind: str, name: str) -> None:
    assert tuning.file_name(kind) == name
