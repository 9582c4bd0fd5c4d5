"""The tuner, with an op whose configurations run on the CPU: what it leaves out, what it writes, and that tuning.py reads that."""

import dataclasses
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from assay_kernels import tune, tuning
from assay_kernels.benching import Tunable


@dataclasses.dataclass(frozen=True)
class Config:
    repeats: int
    kind: str = "good"


@dataclasses.dataclass(frozen=True)
class Shape:
    rows: int
    flops: int = 0
    bytes: int = 0
    on: tuple[str, ...] = ("gpu",)

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((self.rows, 256), jnp.float32),)

    def arguments(self) -> tuple[jax.Array, ...]:
        return (jnp.full((self.rows, 256), 0.01),)


def run(shape: Shape, config: Config) -> Any:
    """The more repeats, the slower; some kinds cannot be."""

    def work(x: jax.Array) -> jax.Array:
        if config.kind == "too large":
            raise ValueError("smem_bytes=300000 > max_smem_bytes=232448")
        if config.kind == "spills":  # as ptxas says it, past Python
            os.write(2, b"0 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads\n")
        y = jax.lax.fori_loop(0, config.repeats, lambda _, y: jnp.sin(y), x)
        return x + 0 * y + (1 if config.kind == "wrong" else 0)

    return work


SPACE = [Config(40), Config(1), Config(60), Config(1, "too large"), Config(1, "spills")]


def tunable(space: list[Config] = SPACE) -> Tunable:
    return Tunable(
        key=lambda s: {"rows": s.rows, "dtype": "float32"}, exact=(), space=lambda s: space if s.rows else [], run=run
    )


def tuned(shape: Shape, space: list[Config] = SPACE, seconds: float = 60.0, lines: list[str] | None = None) -> Any:
    report = (lines if lines is not None else []).append
    options = {"rounds": 3, "deadline": time.monotonic() + seconds, "report": report}
    return tune.tune("fake", "mosaic", "large", shape, tunable(space), **options)


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    monkeypatch.setattr(tune.timing, "SAMPLE", 0.004)
    monkeypatch.setattr(tune.timing, "CACHE", 1)


def test_the_fastest_is_found_and_what_cannot_be_is_left_out(capfd) -> None:
    lines: list[str] = []
    entry = tuned(Shape(512), lines=lines)
    assert entry["config"] == {"repeats": 1, "kind": "good"}
    assert entry["shape"] == {"rows": 512, "dtype": "float32"}
    assert entry["refused"][str(Config(1, "spills"))] == "spills 24 bytes of registers"
    assert "smem_bytes=300000" in entry["refused"][str(Config(1, "too large"))]
    assert entry["jax"] == jax.__version__
    assert entry["spread"][0] <= entry["median"] <= entry["spread"][1]
    assert len(entry["timings"][str(Config(1))]) == 3
    assert [line.split(" ")[2] for line in lines] == [f"{i}/5" for i in range(1, 6)]
    assert "spill stores" not in capfd.readouterr().err


def test_configurations_that_compute_different_results_are_an_error() -> None:
    with pytest.raises(tune.Disagreement, match=r"Config\(repeats=1, kind='wrong'\) computes something else"):
        tuned(Shape(8), [Config(1), Config(1, "wrong")])


def test_what_is_not_reached_in_time_is_named_and_nothing_is_written_without_a_figure() -> None:
    lines: list[str] = []
    assert tuned(Shape(8), seconds=-1.0, lines=lines) is None
    assert "not reached in time" in lines[0]
    assert lines[-1].endswith("no configuration could be timed; nothing is written")


def test_tables_are_merged_and_read_by_tuning(tmp_path, monkeypatch, capsys) -> None:
    wanted = [("mosaic", name, shape, tunable()) for name, shape in {"small": Shape(256), "large": Shape(512)}.items()]
    assert tune.tune_all("fake", wanted, tmp_path, rounds=2, seconds=60.0) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "cpu.json"
    before = json.loads(path.read_text())["entries"]
    tune.merge(path, {**before[0], "config": {"repeats": 7}})
    tune.merge(path, {**before[0], "op": "another"})
    after = json.loads(path.read_text())["entries"]
    assert [(e["op"], e["shape"]["rows"]) for e in after] == [("another", 256), ("fake", 256), ("fake", 512)]
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path))
    for rows, expected in {256: Config(7), 512: Config(1)}.items():
        key = {"rows": rows, "dtype": "float32"}
        assert tuning.tuned("fake", "mosaic", key, exact=("rows",), otherwise=Config(99)) == expected
    assert "cpu.json: 2 entries written" in capsys.readouterr().out


def test_a_shape_that_fails_does_not_end_the_run(tmp_path, capsys) -> None:
    wanted = [
        ("mosaic", "wrong", Shape(8), tunable([Config(1), Config(1, "wrong")])),
        ("mosaic", "right", Shape(8), tunable([Config(1)])),
    ]
    assert tune.tune_all("fake", wanted, tmp_path, rounds=1, seconds=60.0) == 1
    out = capsys.readouterr().out
    assert "FAILED Disagreement" in out
    assert "1 entries written; without one: mosaic wrong" in out


def test_a_file_that_is_no_table_is_not_overwritten(tmp_path) -> None:
    path = tmp_path / "cpu.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"cpu\.json is no table of configurations"):
        tune.merge(path, {"op": "fake", "implementation": "mosaic", "shape": {}, "config": {}})
    assert path.read_text() == "[]"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def fake(monkeypatch) -> None:
    """An op `fake` among those that are benched."""
    bench = types.ModuleType("assay_kernels.fake.bench")
    bench.SHAPES = {"small": Shape(8), "same key": Shape(8), "large": Shape(512), "untunable": Shape(0)}
    bench.TUNABLE = {"mosaic": tunable()}
    monkeypatch.setitem(sys.modules, "assay_kernels.fake.bench", bench)
    monkeypatch.setattr(tune, "benched", lambda: ["fake"])


def test_without_a_gpu_there_is_one_clear_error(fake, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        tune.main(["fake", "--out", str(tmp_path)])
    assert left.value.code == 2
    assert "tuning measures a GPU, and there is none: jax's default device is cpu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_shapes_and_spaces(fake, capsys) -> None:
    assert tune.main(["fake", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fake mosaic small: 5 configurations, key {'rows': 8, 'dtype': 'float32'}",
        "fake mosaic large: 5 configurations, key {'rows': 512, 'dtype': 'float32'}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fake", "cuda"], "fake has no tunable implementation 'cuda'; there are mosaic"),
        (["fake", "--shape", "huge"], "fake has no shape huge; there are small, same key, large, untunable"),
        (["other"], "invalid choice: 'other'"),
    ],
)
def test_what_there_is_not_is_refused_in_words(fake, arguments, message, capsys) -> None:
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert message in capsys.readouterr().err


def test_by_default_the_packages_own_data_are_written(fake, monkeypatch) -> None:
    monkeypatch.setattr(tune, "current_target", lambda: types.SimpleNamespace(platform="cuda"))
    written: list[Path] = []
    monkeypatch.setattr(tune, "tune_all", lambda op, wanted, out, **_: written.append(out) or 0)
    assert tune.main(["fake"]) == 0
    assert written == [Path(tuning.__file__).parent / "data"]
