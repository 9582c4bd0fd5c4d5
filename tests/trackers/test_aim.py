"""The real Aim: what is written is read back through its SDK, and its known traps do not bite."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from assay import registry, runs
from assay.errors import RunError
from assay.runs.directory import RunDirectory
from assay.track import Fanout, replay
from assay_plugins.trackers.aim import AimTracker, nested

if importlib.util.find_spec("aim") is None:
    pytest.skip("needs Aim", allow_module_level=True)

CONFIG = {
    "experiment.seed": 0,
    "model.mlp.width": 8,
    "model.mlp.dropout": None,
    "experiment.evaluate_splits": ["validation"],
}
READER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from aim import Repo
from aim.storage.context import Context
repo = Repo.from_path(sys.argv[1])
found = {}
for run in repo.iter_runs():
    metrics = {}
    for metric in run.metrics():
        steps, (values, _, _) = metric.data.items_list()
        metrics[f"{metric.context.to_dict()['subset']}/{metric.name}"] = [list(map(int, steps)), list(values)]
    info = run.collect_sequence_info(("texts", "images", "figures"), skip_last_value=True)
    media = {kind: sorted(i["name"] for i in items) for kind, items in info.items()}
    texts = {n: [t.data for t in run.get_text_sequence(n, Context({})).values.values_list()] for n in media["texts"]}
    found[run.name] = {
        "hash": run.hash, "experiment": run.experiment, "hparams": run["hparams"], "assay": run["assay"],
        "metrics": metrics, "media": media, "texts": texts, "ended": run.end_time is not None,
    }
found["query"] = sum(1 for _ in repo.query_runs("run.hparams.model.mlp.width == 8").iter_runs())
print(json.dumps(found))
"""
WRITER = """
import sys
from pathlib import Path
from assay import runs
from assay.track import Fanout
from assay_plugins.trackers.aim import AimTracker
run = runs.create(Path(sys.argv[1]), f"writer_{sys.argv[2]}", config={"experiment.seed": int(sys.argv[2])})
with run.session():
    tracking = Fanout(run, [AimTracker()], finish_seconds=120)
    for step in range(20):
        tracking.scalars(step, {"loss": step + float(sys.argv[2])}, "train")
    tracking.finish("completed")
print((run.path / "log.txt").read_text() if (run.path / "log.txt").exists() else "no trouble")
"""


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read(root: Path) -> dict[str, Any]:
    """What Aim's SDK finds in the store, asked in a process that has not written to it."""
    out, err = python(READER, str(root)).communicate()
    assert out, err
    return dict(json.loads(out))


def session(run: RunDirectory, steps: range) -> None:
    """Log with trouble as an error."""

    def refuse(message: str) -> None:
        raise AssertionError(message)

    with run.session():
        tracking = Fanout(run, [AimTracker()], report=refuse, finish_seconds=120, system_seconds=0.05)
        tracking.scalars_many(
            steps, {"loss": jnp.arange(len(steps)) + 0.5, "bad": np.full(len(steps), np.nan)}, "train"
        )
        tracking.scalars(steps[-1], {"loss": jnp.float32(1.5)}, "validation")
        tracking.text(steps[-1], "sample_0", f"at {steps[-1]}")
        tracking.image(steps[-1], "digits", np.zeros((4, 4, 1), np.uint8))
        tracking.finish("completed")
    assert not (run.path / "log.txt").exists()


def test_a_run_is_read_back_resumed_and_replayed(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "lm", config=CONFIG, parent=None)
    session(run, range(1, 4))
    session(run, range(4, 6))
    before = read(tmp_path)
    assert replay(run, AimTracker()) > 0
    after = read(tmp_path)
    found = before[run.id]
    assert before["query"] == 1
    assert len(before) == 2
    assert found["hash"] == json.loads((run.path / "trackers/aim.json").read_text())["hash"]
    assert (found["experiment"], found["ended"]) == ("lm", True)
    assert found["hparams"] == nested(CONFIG)
    assert (found["assay"]["run"], found["assay"]["status"]) == (run.id, "completed")
    assert found["metrics"]["train/loss"] == [[1, 2, 3, 4, 5], [0.5, 1.5, 2.5, 0.5, 1.5]]
    assert np.isnan(found["metrics"]["train/bad"][1]).all()
    assert found["metrics"]["validation/loss"] == [[3, 5], [1.5, 1.5]]
    assert found["media"] == {"texts": ["sample_0"], "images": ["digits"], "figures": []}
    assert found["texts"]["sample_0"] == ["at 3", "at 5"]
    np.testing.assert_equal(after, before)


def test_a_store_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "lm", config={})
    (run.path / "trackers").mkdir()
    (run.path / "trackers/aim.json").write_text('{"hash": "0123456789abcdef01234567"}')
    store = tmp_path / "elsewhere"
    tracker = AimTracker(repo=str(store), experiment="named")
    tracker.start(run.path, run.record(), resumed=True)
    tracker.scalars(1, {"loss": jnp.float32(2.0)}, "train")  # type: ignore[dict-item]
    tracker.finish("completed")
    assert read(store)[run.id]["experiment"] == "named"
    assert not (tmp_path / ".aim").exists()


@pytest.mark.slow
def test_four_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    writers = [python(WRITER, str(tmp_path), str(i)) for i in range(4)]
    assert [writer.communicate() for writer in writers] == [("no trouble\n", "")] * 4
    found = read(tmp_path)
    assert found.pop("query") == 0
    assert sorted(run["metrics"]["train/loss"][1][0] for run in found.values()) == [0.0, 1.0, 2.0, 3.0]
    assert all(run["ended"] and len(run["metrics"]["train/loss"][0]) == 20 for run in found.values())


def test_figures(tmp_path: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure(figsize=(1, 1), dpi=20)

    plotly = {
        "__module__": "plotly.basedatatypes",
        "to_json": lambda self: '{"data": []}',
    }  # what Aim knows it by and asks of it
    run = runs.create(tmp_path, "lm", config={})
    tracker = AimTracker()
    tracker.start(run.path, run.record(), resumed=False)
    tracker.figure(1, "drawn", figure)
    tracker.figure(1, "interactive", type("BaseFigure", (), plotly)())
    tracker.finish("completed")
    assert read(tmp_path)[run.id]["media"] == {"texts": [], "images": ["drawn"], "figures": ["interactive"]}


def test_it_is_the_registered_plugin_and_asking_for_it_imports_no_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.load("tracker", "aim") is AimTracker
    code = "import sys; from assay_plugins.trackers.aim import AimTracker; AimTracker().available(); sys.exit('aim' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not AimTracker().available()


def test_without_aim_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = runs.create(tmp_path, "lm", config={})
    said: list[str] = []
    with run.session():
        tracking = Fanout(run, [AimTracker()], report=said.append)
        tracking.scalars(1, {"loss": 1.0}, "train")
        tracking.finish("completed")
    assert ["pip install 'assay[aim]'" in message for message in said] == [True]
    with run.session(), pytest.raises(RunError, match="is training"):
        replay(run, AimTracker())


def test_dotted_keys_become_dicts() -> None:
    values: Mapping[str, Any] = {"a.b.c": 1, "a.b.d": [1, 2], "e": None}
    assert nested(values) == {"a": {"b": {"c": 1, "d": [1, 2]}}, "e": None}
