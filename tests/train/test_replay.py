"""A step done again is the step that was, and says what it did; the run is not touched."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from assay import config
from assay.checkpoint.checkpoints import Checkpoints, dotted
from assay.cli import main
from assay.errors import RunError
from assay.plan.plan import make_plan, with_shardings
from assay.runs import open_run, read_metrics
from assay.runs.directory import RunDirectory
from assay.train.faults import Fault
from assay.train.launch import start
from assay.train.replay import replay

GIN = """
experiment.model = @model.transformer()
model.transformer.layers = 1
model.transformer.width = 16
model.transformer.heads = 2
model.transformer.dropout = 0.1
experiment.dataset = @dataset.text_files()
dataset.text_files.files = '{text}'
dataset.text_files.tokenizer = @tokenizer.char()
dataset.text_files.context = 16
experiment.objective = @objective.next_token()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = {rate}
experiment.parallelism = @parallelism.data_parallel()
experiment.trackers = []
experiment.steps = 12
experiment.batch_size = 8
experiment.steps_per_dispatch = 3
experiment.log_every = 1
experiment.evaluate_splits = []
experiment.checkpoint_every = {every}
experiment.keep_checkpoints = 12
"""


def trained(root, text, *, rate=1e-2, every=3):
    (root / "small.gin").write_text(GIN.format(text=text, rate=rate, every=every))
    with contextlib.suppress(Fault):
        start(config.load(root / "small.gin"), root / "runs")
    return open_run("latest", root / "runs")


@pytest.fixture(scope="module")
def run(tmp_path_factory, text_file):
    return trained(tmp_path_factory.mktemp("run"), text_file)


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("step", "begun"), [(3, 0), (4, 3), (8, 6), (12, 9)])
def test_a_step_is_what_it_was(run, step, begun):
    before = contents(run)
    found = replay(run, step)
    assert (found.begun, found.batch, found.fault, found.dumped) == (begun, step - 1, None, None)
    assert found.metrics["loss"] == pytest.approx(found.logged, rel=1e-6)
    (row,) = [r for r in read_metrics(run.metrics) if r["step"] == step and r["context"] == "train"]
    assert found.metrics["gradient_norm"] == pytest.approx(row["gradient_norm"], rel=1e-5)
    norms = [layer["gradient"] for layer in found.layers.values()]
    assert np.sqrt(np.sum(np.square(norms))) == pytest.approx(row["gradient_norm"], rel=1e-5)
    assert all(layer["finite"] == 1 and layer["largest"] <= layer["gradient"] for layer in found.layers.values())
    assert contents(run) == before


def test_the_norms_are_those_of_the_checkpoints_before_and_after(tmp_path, text_file):
    run = trained(tmp_path, text_file, every=1)
    plan = make_plan(config.load(tmp_path / "small.gin").experiment)
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    abstract = with_shardings(plan.abstract, plan.shardings)
    before, after = (dotted(checkpoints.restore(step, {"params": abstract.params})) for step in (6, 7))
    checkpoints.close()
    found = replay(run, 7)
    for path, layer in found.layers.items():
        old, new = (np.asarray(values[f"params.{path}"]) for values in (before, after))
        assert layer["size"] == old.size
        assert layer["parameter"] == pytest.approx(np.linalg.norm(old), rel=1e-5, abs=1e-12)
        assert layer["update"] == pytest.approx(np.linalg.norm(new - old), rel=1e-3, abs=1e-12)


def test_a_fault_comes_again_with_the_batch_of_its_dump(tmp_path, text_file, capsys):
    run = trained(tmp_path, text_file, rate=1e30)
    (dump,) = (run.path / "faults").iterdir()
    step = int(dump.name.removeprefix("step-"))
    facts = json.loads((dump / "facts.json").read_text())
    words = ["replay", run.id, "--root", str(tmp_path / "runs"), "--step", str(step)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fault"] == facts["fault"]
    assert found["dumped"] is True
    assert found["examples"] == facts["examples"]
    assert any(layer["finite"] < 1 for layer in found["layers"].values())
    with np.load(dump / "batch.npz") as arrays:
        changed = dict(arrays)
    changed["inputs"] = changed["inputs"] + 1
    np.savez(dump / "batch.npz", **changed)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "NOT the one in the dump" in out
    assert "(as logged)" in out
    assert "not finite" in out


@pytest.fixture
def copy(run, tmp_path):
    return RunDirectory(shutil.copytree(run.path, tmp_path / run.id))


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(copy):
    (copy.checkpoints / "6" / "manifest.json").unlink()
    lines = []
    assert replay(copy, 7, lines.append).begun == 3
    assert "CHECKPOINT 6 IS DAMAGED" in lines[0]


@pytest.mark.parametrize("step", [0, 13])
def test_a_step_that_there_is_not(run, step):
    with pytest.raises(RunError, match=r"the steps of run .* are 1 to 12"):
        replay(run, step)


def test_other_data_is_refused(copy):
    path = copy.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "other"}))
    with pytest.raises(RunError, match="data has changed"):
        replay(copy, 2)
