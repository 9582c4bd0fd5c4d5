"""The oracle of resuming: the same bits in every array of the final state and every logged number, and no mistake gets past it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from assay import runs
from assay.plan.plan import make_plan
from assay.runs import read_metrics
from assay.track import Fanout, rewind
from assay.train.interrupt import StopRequest
from assay.train.loop import Trainer
from assay.train.progress import Progress
from assay_plugins.datasets.text_files import TextFiles
from assay_plugins.tokenizers.byte import Bytes

STEPS, STOP = 24, 10


class At:
    """A callback that acts at one step; both the interrupted run and the other have it, so that dispatches are the same."""

    def __init__(self, action=lambda: None):
        self._action = action

    def due(self, step):
        return step == STOP

    def act(self, trainer, step):
        self._action()


@pytest.fixture
def experiment(tiny, text_file):
    base = tiny(
        steps=STEPS,
        ema_decay=0.9,
        steps_per_dispatch=4,
        evaluate_every=6,
        checkpoint_every=8,
        keep_best="validation/loss",
        on_spike="skip",
        dataset=TextFiles(files=str(text_file), tokenizer=Bytes(), context=16, packing="documents"),
    )
    return dataclasses.replace(base, model=dataclasses.replace(base.model, dropout=0.2))


@pytest.fixture(scope="module")
def alone():
    return {}


def session(experiment, run, *, resume=None, stop=None, mutate=lambda trainer: None):
    """Train in `run` from checkpoint `resume` on, to the end or to step STOP; the digests and rows of where it stopped."""
    rewind(run, resume or 0)
    trainer = Trainer(
        make_plan(experiment, devices=jax.devices()[:1]), run, Fanout(run), Progress(STEPS, "tokens", quiet=True), {}
    )
    trainer.callbacks.insert(0, At((lambda: setattr(stop, "reason", "SIGTERM")) if stop is not None else lambda: None))
    try:
        step = trainer.begin(resume)
        mutate(trainer)
        status = trainer.train(step, stop if stop is not None else StopRequest())
        extra, best = trainer.checkpoints.extra(trainer.step), trainer.checkpoints.best()
    finally:
        trainer.close()
        trainer.tracking.finish("completed")
    rows = [row for row in read_metrics(run.metrics) if row["context"] in ("train", "validation")]
    rows = [{k: v for k, v in row.items() if k != "time"} for row in rows]
    return status, {"digests": extra["digests"], "iterator": extra["iterator"], "best": best, "rows": rows}


def whole(experiment, alone, root):
    if not alone:
        status, alone["outcome"] = session(experiment, runs.create(root, "alone", steps=STEPS))
        assert status == "completed"
    return alone["outcome"]


def resumed(experiment, root, mutate=lambda trainer: None):
    run = runs.create(root, "resumed", steps=STEPS)
    status, before = session(experiment, run, stop=StopRequest())
    assert status == "interrupted"
    assert before["rows"][-1]["step"] == STOP
    return session(experiment, run, resume=STOP, mutate=mutate)[1]


def test_an_interrupted_and_resumed_run_is_the_run_that_was_not(experiment, alone, tmp_path):
    expected, found = whole(experiment, alone, tmp_path), resumed(experiment, tmp_path)
    assert [row["step"] for row in found["rows"] if row["context"] == "train"] == list(range(1, STEPS + 1))
    assert found == expected


def changed(state, field, change):
    return dataclasses.replace(state, **{field: change(getattr(state, field))})


def leaves(tree, kind, change):
    """`tree` with `change` made to the leaves of a kind."""
    return jax.tree.map(lambda x: change(x) if jnp.issubdtype(x.dtype, kind) else x, tree)


def mutate_state(field, change):
    def mutate(trainer):
        new = changed(trainer.state, field, change)
        trainer.state = jax.device_put(jax.tree.map(jnp.copy, new), trainer.plan.shardings)  # no buffer twice

    return mutate


def mutate_iterator(change):
    def mutate(trainer):
        state = trainer.batches.state()
        trainer.batches.restore(state | {"next_batch": change(state["next_batch"])})

    return mutate


MUTATIONS = {
    "dropped random key": mutate_state("key", jnp.zeros_like),
    "stale optimizer moment": mutate_state("optimizer", lambda o: leaves(o, jnp.floating, jnp.zeros_like)),
    "wrong schedule step": mutate_state("optimizer", lambda o: leaves(o, jnp.integer, lambda x: x - 1)),
    "wrong step": mutate_state("step", lambda x: x + 1),
    "forgotten moving average": lambda trainer: mutate_state("ema", lambda _: trainer.state.params)(trainer),
    "forgotten guard": mutate_state("guard", lambda g: jax.tree.map(jnp.zeros_like, g)),
    "off-by-one sample": mutate_iterator(lambda n: n + 1),
    "position among packed rows lost": mutate_iterator(lambda n: 0),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_the_oracle_catches(experiment, alone, tmp_path, mistake):
    expected, found = whole(experiment, alone, tmp_path), resumed(experiment, tmp_path, MUTATIONS[mistake])
    assert found["digests"] != expected["digests"]


def test_a_position_of_other_data_is_refused(experiment, tmp_path):
    run = runs.create(tmp_path, "other", steps=STEPS)
    session(experiment, run, stop=StopRequest())
    with pytest.raises(Exception, match="batch_size was 16, is 8"):
        session(dataclasses.replace(experiment, batch_size=8), run, resume=STOP)
