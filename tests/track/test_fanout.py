"""Logging: everything reaches the run directory and the trackers, and no tracker can hurt the run."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from assay import registry
from assay.errors import RunError
from assay.runs.directory import RunDirectory
from assay.runs.metrics import read_metrics
from assay.track import Fanout, installed_trackers
from assay.track import worker as worker_module


def rows(run: RunDirectory) -> list[tuple[Any, ...]]:
    """(step, context, values) of every row."""
    own = ("step", "context", "time")
    return [(r["step"], r["context"], {k: v for k, v in r.items() if k not in own}) for r in read_metrics(run.metrics)]


def test_the_store_and_the_tracker_get_the_same_in_order(run: RunDirectory, memory: Any) -> None:
    tracking = Fanout(run, [memory])
    tracking.scalars(1, {"loss": 2.0, "rate": np.float32(0.5)}, "train")
    tracking.scalars_many([2, 3], {"loss": np.array([1.5, np.nan], np.float32)}, "train")
    tracking.scalars(3, {"loss": 1.0}, "validation")
    tracking.finish("completed")
    expected = [
        (1, "train", {"loss": 2.0, "rate": 0.5}),
        (2, "train", {"loss": 1.5}),
        (3, "train", {"loss": pytest.approx(np.nan, nan_ok=True)}),
        (3, "validation", {"loss": 1.0}),
    ]
    assert rows(run) == expected
    assert memory.calls == [
        ("start", run.id, {"experiment.seed": 1}, False),
        *((context, step, values) for step, context, values in expected),
        "flush",
        ("finish", "completed"),
    ]
    assert pd.read_json(run.metrics, lines=True)["loss"].tolist()[:2] == [2.0, 1.5]


def test_device_arrays_are_taken_in_any_dtype(run: RunDirectory) -> None:
    tracking = Fanout(run)
    sharding = jax.sharding.NamedSharding(jax.make_mesh((8,), ("x",)), jax.sharding.PartitionSpec())
    values = {
        "a": jax.device_put(jnp.arange(3, dtype=jnp.bfloat16), sharding),
        "b": jnp.array([True, False, True]),
        "c": jnp.array([1, 2, 3], jnp.int32),
    }
    tracking.scalars_many([5, 6, 7], values, "train")
    tracking.scalars(8, {"d": jnp.float32(0.1)}, "train")
    tracking.finish("completed")
    assert rows(run)[1] == (6, "train", {"a": 1.0, "b": 0.0, "c": 2.0})
    assert rows(run)[3] == (8, "train", {"d": float(np.float32(0.1))})


class Slow:
    """Stands for a device array that is still being computed."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.copied = False

    def copy_to_host_async(self) -> None:
        self.copied = True

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.ready.wait()
        return np.array(1.0)


def test_the_caller_never_waits_for_a_value(run: RunDirectory) -> None:
    tracking, value = Fanout(run), Slow()
    tracking.scalars(1, {"loss": value}, "train")  # type: ignore[dict-item]
    tracking.scalars(2, {"loss": 2.0}, "train")
    assert value.copied
    assert rows(run) == []
    value.ready.set()
    tracking.flush()
    assert [step for step, _, _ in rows(run)] == [1, 2]
    tracking.finish("completed")


def test_flush_means_on_disk(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("assay.runs.metrics.os.fsync", lambda file: synced.append(len(rows(run))))
    tracking = Fanout(run, system_seconds=1e6)
    for step in range(10_000):
        tracking.scalars(step, {f"value_{i}": 0.5 for i in range(20)}, "train")
    assert synced == []
    tracking.flush()
    assert synced == [10_000]
    tracking.finish("completed")


def test_names_of_the_stores_own_columns_get_an_underscore(run: RunDirectory, memory: Any) -> None:
    tracking = Fanout(run, [memory])
    tracking.scalars(1, {"step": 5.0, "time": 6.0}, "train")
    tracking.finish("completed")
    assert rows(run) == [(1, "train", {"step_": 5.0, "time_": 6.0})]
    assert ("train", 1, {"step_": 5.0, "time_": 6.0}) in memory.calls


def test_samples_become_files(run: RunDirectory, memory: Any) -> None:
    tracking = Fanout(run, [memory])
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tracking.text(5, "sample_0", "ä\r\nb")
    tracking.image(5, "validation/errors", jnp.asarray(pixels))
    tracking.finish("completed")
    assert sorted(p.name for p in run.samples.iterdir()) == [
        "00000005-sample_0.txt",
        "00000005-validation%2Ferrors.png",
    ]
    assert (run.samples / "00000005-sample_0.txt").read_bytes().decode() == "ä\r\nb"
    assert ("text", 5, "sample_0", "ä\r\nb") in memory.calls
    assert ("image", 5, "validation/errors", pixels.tolist()) in memory.calls


def test_a_matplotlib_figure_is_drawn_once_into_an_image(run: RunDirectory, memory: Any) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure(figsize=(1, 1), dpi=20)
    figure.subplots().plot([1, 2])
    tracking = Fanout(run, [memory])
    tracking.figure(3, "curve", figure)
    tracking.finish("completed")
    (call,) = [c for c in memory.calls if c[0] == "image"]
    assert np.shape(call[3]) == (20, 20, 3)
    assert (run.samples / "00000003-curve.png").exists()


def failing(method: str) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise SystemExit(f"{method} is broken")

    return fail


@pytest.mark.parametrize("method", ["start", "scalars", "finish", "flush"])
def test_a_tracker_that_raises_is_reported_once_and_the_rest_goes_on(
    run: RunDirectory, memory: Any, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = type(memory)()
    setattr(broken, method, failing(method))
    tracking = Fanout(run, [broken, memory])
    for step in range(50):
        tracking.scalars(step, {"loss": 1.0}, "train")
    tracking.finish("completed")
    assert len(rows(run)) == 50
    assert len(memory.calls) == 50 + 3
    warning = capsys.readouterr().err
    assert warning.count(f"failed and is off from now on: SystemExit: {method} is broken") == 1
    assert f"assay runs --sync {run.id}" in warning
    assert (run.path / "log.txt").read_text().count("is off from now on") == 1


@pytest.mark.parametrize("method", ["start", "scalars", "finish"])
def test_a_tracker_that_hangs_costs_the_deadline_and_no_more(run: RunDirectory, memory: Any, method: str) -> None:
    release, said = threading.Event(), list[str]()
    hanging = type(memory)()
    setattr(hanging, method, lambda *args, **kwargs: release.wait())
    tracking = Fanout(run, [hanging, memory], report=said.append, finish_seconds=1.0)
    for step in range(50):
        tracking.scalars(step, {"loss": 1.0}, "train")
    tracking.flush()
    assert len(rows(run)) == 50
    begun = time.monotonic()
    tracking.finish("completed")
    assert time.monotonic() - begun < 30
    assert len(said) == 1
    assert "did not finish in time" in said[0]
    assert memory.calls[-1] == ("finish", "completed")
    release.set()


def test_a_tracker_that_is_too_slow_loses_entries_and_says_so(
    run: RunDirectory, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CAPACITY", 5)
    release, said = threading.Event(), list[str]()
    original = memory.start

    def start(*args: Any, **kwargs: Any) -> None:
        release.wait()
        original(*args, **kwargs)

    memory.start = start
    tracking = Fanout(run, [memory], report=said.append)
    for step in range(20):
        tracking.scalars(step, {"loss": 1.0}, "train")
    tracking.flush()
    assert len(rows(run)) == 20
    release.set()
    tracking.finish("completed")
    assert [call[1] for call in memory.calls if call[0] == "train"] == [0, 1, 2, 3, 4]
    assert len(said) == 2
    assert "is too slow" in said[0]
    assert "did not get 15 entries" in said[1]


@pytest.mark.parametrize("trouble", ["disk", "shape", "image"])
def test_what_cannot_be_written_is_raised_at_the_next_call(run: RunDirectory, trouble: str) -> None:
    tracking = Fanout(run)
    if trouble == "disk":
        tracking._store._file.close()
        tracking.scalars(1, {"loss": 1.0}, "train")
    elif trouble == "shape":
        tracking.scalars_many([1, 2], {"loss": np.zeros(3)}, "train")
    else:
        tracking.image(1, "a", np.zeros((2, 2)))
    match = {"disk": "cannot log", "shape": "'loss' in 'train' has shape", "image": "must be uint8"}[trouble]
    with pytest.raises(RunError, match=match):
        tracking.flush()
    with pytest.raises(RunError, match=match):
        tracking.scalars(2, {"loss": 1.0}, "train")
    with pytest.raises(RunError, match=match):
        tracking.finish("failed")


def test_only_the_first_process_writes(run: RunDirectory, memory: Any) -> None:
    tracking = Fanout(run, [memory], primary=False)
    tracking.scalars(1, {"loss": 1.0}, "train")
    tracking.text(1, "a", "b")
    tracking.flush()
    tracking.finish("completed")
    assert memory.calls == []
    assert not run.metrics.exists()


def test_system_statistics_are_logged_once_a_step(run: RunDirectory) -> None:
    tracking = Fanout(run, system_seconds=0.01)
    for step in (3, 4):
        tracking.scalars(step, {"loss": 1.0}, "train")
        while [row[:2] for row in rows(run)][-1:] != [(step, "system")]:
            time.sleep(0.02)
        time.sleep(0.1)  # time for a second one
    tracking.finish("completed")
    assert [(step, context) for step, context, _ in rows(run)] == [
        (3, "train"),
        (3, "system"),
        (4, "train"),
        (4, "system"),
    ]
    assert rows(run)[1][2]["process_resident_bytes"] > 1e6
    assert rows(run)[1][2]["process_cpu_percent"] >= 0


class Broken:
    """A tracker whose backend makes trouble when asked."""

    def available(self) -> bool:
        raise OSError("no backend")


class Absent:
    """A tracker without its backend."""

    def available(self) -> bool:
        return False


class Present:
    """A tracker with its backend."""

    def available(self) -> bool:
        return True


def test_installed_trackers_are_those_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_PLUGINS", "")
    said: list[str] = []
    with (
        registry.temporary("tracker", "broken", Broken),
        registry.temporary("tracker", "absent", Absent),
        registry.temporary("tracker", "present", Present),
    ):
        found = installed_trackers(said.append)
    assert [type(tracker) for tracker in found] == [Present]
    assert said == ["tracker.broken is left out: OSError: no backend"]


def test_a_registered_tracker_is_named_as_in_experiments(
    run: RunDirectory, memory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.start = failing("start")
    with registry.temporary("tracker", "memory", type(memory)):
        Fanout(run, [memory]).finish("completed")
    assert "tracker.memory failed" in capsys.readouterr().err
    assert "--to memory" in (run.path / "log.txt").read_text()


def test_a_second_session_is_a_resumption(run: RunDirectory, memory: Any) -> None:
    record: Mapping[str, Any] = run.record()
    run.update(sessions=[*record["sessions"], *record["sessions"]])
    Fanout(run, [memory]).finish("completed")
    assert memory.calls[0][3] is True
    assert Path(run.path / "log.txt").exists() is False
