"""The store of metrics: what goes in comes out, also after a crash, a resumption, and through pandas."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import RunError
from assay.runs.metrics import MetricsStore, encode, read_backwards, read_metrics, row, truncate_after

WRITER = """
import sys
from pathlib import Path
from assay.runs.metrics import MetricsStore, row
store = MetricsStore(Path(sys.argv[1]))
for step in range(10**9):
    store.append([row(step, "train", 0.0, {f"value_{i}": step + i / 7 for i in range(20)})])
    if step == 50:
        print("going", flush=True)
"""


def store_of(path: Path, steps: range, context: str = "train") -> None:
    store = MetricsStore(path)
    store.append([row(step, context, 0.0, {"loss": float(step)}) for step in steps])
    store.close()


def test_not_finite_values_come_back_through_both_readers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    store = MetricsStore(path)
    values = [1.5, math.nan, math.inf, -math.inf]
    store.append([row(i, "train", 1e9, {"loss": value, "ok": 0.1}) for i, value in enumerate(values)])
    store.close()
    np.testing.assert_array_equal([r["loss"] for r in read_metrics(path)], values)
    frame = pd.read_json(path, lines=True)
    assert frame["loss"].dtype == np.float64
    np.testing.assert_array_equal(frame["loss"], values)
    assert frame["step"].tolist() == [0, 1, 2, 3]
    assert frame["context"].tolist() == ["train"] * 4


def test_a_column_that_is_never_finite_is_a_column_of_numbers(tmp_path: Path) -> None:
    store = MetricsStore(tmp_path / "metrics.jsonl")
    store.append([row(i, "train", 0.0, {"loss": math.nan}) for i in range(3)])
    store.close()
    assert pd.read_json(tmp_path / "metrics.jsonl", lines=True)["loss"].dtype == np.float64


def test_every_line_is_strict_json() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(encode({"a": math.nan, "b": [math.inf]}), parse_constant=refuse) == {
        "a": "NaN",
        "b": ["Infinity"],
    }


@given(st.floats())
def test_values_are_exact(value: float) -> None:
    decoded = float(json.loads(encode({"x": value}))["x"])
    assert decoded == value or (math.isnan(decoded) and math.isnan(value))


def test_a_line_left_unfinished_is_skipped_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    store_of(path, range(3))
    with path.open("a") as file:
        file.write('{"step":3,"context":"tr')
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
    assert [r["step"] for r in read_backwards(path, 1 << 20)] == [2, 1, 0]
    store_of(path, range(3, 5))
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["", '{"step":3', "x" * 200_000])
def test_a_file_without_one_whole_line_is_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    assert read_metrics(path) == list(read_backwards(path, 1 << 20)) == []
    store_of(path, range(1))
    assert [r["step"] for r in read_metrics(path)] == [0]


def test_a_killed_writer_leaves_whole_rows_that_a_new_one_goes_on_from(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    steps = [r["step"] for r in read_metrics(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 50
    store_of(path, range(len(steps), len(steps) + 1))
    assert len(pd.read_json(path, lines=True)) == len(steps) + 1


@pytest.mark.parametrize("count", [10, 5000])  # within one block, and over several
def test_resuming_drops_later_steps_of_all_contexts(tmp_path: Path, count: int) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(count):
        store_of(path, range(step, step + 1))
        if step % 5 == 0:
            store_of(path, range(step, step + 1), "validation")
    before = read_metrics(path)
    with path.open("a") as file:
        file.write('{"st')
    kept = [r for r in before if r["step"] <= 5]
    assert truncate_after(path, 5) == len(before) - len(kept)
    assert read_metrics(path) == kept
    assert kept[-1]["context"] == "validation"
    assert truncate_after(path, 5) == 0
    assert list(tmp_path.iterdir()) == [path]
    assert truncate_after(path, -1) == len(kept)
    assert read_metrics(path) == []


def test_resuming_reads_only_what_it_drops(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("x" * 100_000 + "\n")
    store_of(path, range(2000))
    assert truncate_after(path, 1990) == 9


def test_truncating_nothing_is_nothing(tmp_path: Path) -> None:
    assert truncate_after(tmp_path / "metrics.jsonl", 0) == 0
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,"context":"train","time":0}\nnonsense\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: a damaged line.*nonsense"):
        read_metrics(path)


def test_reading_backwards_crosses_blocks_and_stops_at_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    store_of(path, range(5000))
    assert path.stat().st_size > 3 << 16
    assert [r["step"] for r in read_backwards(path, 1 << 30)] == list(range(4999, -1, -1))
    steps = [r["step"] for r in read_backwards(path, 70_000)]
    assert steps == list(range(4999, 4999 - len(steps), -1))
    assert 500 < len(steps) < 2500


def test_what_the_disk_refuses_is_reported(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    store = MetricsStore(path)
    with pytest.raises(RunError, match=r"cannot write .*No space left"):
        store.append([row(1, "train", 0.0, {})])
    store.close()
