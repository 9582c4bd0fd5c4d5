"""What happens between a checkpoint begun and a checkpoint on disk: failures come up at once, an evaluation given up is done on resume."""

import errno
import time

import jax
import pytest

from assay import runs
from assay.checkpoint import manifest
from assay.errors import CheckpointError
from assay.plan.plan import make_plan
from assay.runs import read_metrics
from assay.track import Fanout, rewind
from assay.train.interrupt import StopRequest
from assay.train.loop import Trainer
from assay.train.progress import Progress


def trainer_of(experiment, run):
    quiet = Progress(experiment.steps, "tokens", quiet=True)
    return Trainer(make_plan(experiment, devices=jax.devices()[:1]), run, Fanout(run), quiet, {})


def end(trainer):
    trainer.close()
    trainer.tracking.finish("completed")


class Slow:
    """A callback of every step: notes it, and gives the threads in the background time, after `failed` all that they need."""

    def __init__(self):
        self.steps, self.failed = [], []

    def due(self, step):
        return True

    def act(self, trainer, step):
        self.steps.append(step)
        time.sleep(0.1)
        while self.failed and trainer.checkpoints._manager._finalize_thread.map(lambda thread: thread.is_alive()):
            time.sleep(0.01)


def test_a_write_that_fails_in_the_background_stops_the_run_within_a_step(tiny, tmp_path, monkeypatch):
    experiment = tiny(steps=100, checkpoint_every=5, keep_checkpoints=2, steps_per_dispatch=1)
    run = runs.create(tmp_path, "failing", steps=100)
    trainer, slow, seal = trainer_of(experiment, run), Slow(), manifest.seal

    def full(directory):
        if len(manifest.steps(run.checkpoints)) == 1:
            slow.failed.append(slow.steps[-1])
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(directory)

    monkeypatch.setattr(manifest, "seal", full)
    trainer.callbacks.append(slow)
    with pytest.raises(CheckpointError, match=r"disk is full.*complete checkpoints: steps \[5\]"):
        trainer.train(trainer.begin(), StopRequest())
    assert slow.steps[-1] <= slow.failed[0] + 1
    assert manifest.damage(run.checkpoints / "5") == []
    end(trainer)


def rows_of(run):
    return [{k: v for k, v in r.items() if k != "time"} for r in read_metrics(run.metrics) if r["context"] != "system"]


def test_an_evaluation_given_up_is_done_when_the_run_goes_on(tiny, tmp_path):
    experiment = tiny(steps=20, evaluate_every=10, steps_per_dispatch=5)
    whole, cut = (runs.create(tmp_path, name, steps=20) for name in ("whole", "cut"))
    trainer = trainer_of(experiment, whole)
    assert trainer.train(trainer.begin(), StopRequest()) == "completed"
    end(trainer)

    trainer, stop = trainer_of(experiment, cut), StopRequest()
    asked = trainer._abandoned

    def told_to_stop():  # asked before each batch of an evaluation, and so in the middle of one
        told_to_stop.batches += 1
        stop.reason = "SIGTERM" if told_to_stop.batches == 2 else stop.reason
        return asked()

    told_to_stop.batches = 0
    trainer._abandoned = told_to_stop
    assert trainer.train(trainer.begin(), stop) == "interrupted"
    assert trainer.checkpoints.extra(10)["unfinished"]
    end(trainer)
    assert not [r for r in rows_of(cut) if r["context"] == "validation"]

    rewind(cut, 10)
    trainer = trainer_of(experiment, cut)
    assert trainer.train(trainer.begin(10), StopRequest()) == "completed"
    end(trainer)
    kept = [[r for r in rows_of(run) if r["context"] != "throughput"] for run in (whole, cut)]
    assert [r["step"] for r in kept[0] if r["context"] == "validation"] == [10, 20]
    assert kept[0] == kept[1]


def test_an_evaluation_that_decides_what_is_kept_is_not_given_up(tiny, tmp_path):
    experiment = tiny(steps=20, checkpoint_every=10, keep_best="validation/loss", steps_per_dispatch=5)
    run = runs.create(tmp_path, "best", steps=20)
    trainer, stop = trainer_of(experiment, run), StopRequest()
    evaluate = trainer.evaluate
    trainer.evaluate = lambda step: (setattr(stop, "reason", "SIGTERM"), evaluate(step))[1]
    assert trainer.train(trainer.begin(), stop) == "interrupted"
    assert trainer.checkpoints.best() == 10
    assert not trainer.checkpoints.extra(10)["unfinished"]
    end(trainer)
