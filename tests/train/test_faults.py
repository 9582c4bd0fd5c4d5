"""Steps that go wrong: seen in the step, then stopped with a dump, skipped, or gone back from; on a mesh as on one device."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay import runs
from assay.checkpoint.checkpoints import dotted
from assay.data.pipeline import train_batches
from assay.plan.plan import make_plan
from assay.runs import read_metrics
from assay.track.fanout import Fanout
from assay.train import guard
from assay.train.faults import Fault
from assay.train.interrupt import StopRequest
from assay.train.loop import Trainer
from assay.train.progress import Progress
from assay.train.state import Guard
from assay_plugins.datasets.text_files import TextFiles
from assay_plugins.objectives.next_token import NextToken
from assay_plugins.tokenizers.byte import Bytes

BAD = 7  # the batch that is not finite, or has a spike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisoned(NextToken):
    """Next tokens, but the loss of rows that begin with these tokens is `times` as much."""

    first: tuple[int, ...] = ()
    times: float = float("nan")

    def __call__(self, module, batch, *, train, rngs):
        found = super().__call__(module, batch, train=train, rngs=rngs)
        rows = jnp.all(batch["inputs"][:, : len(self.first)] == jnp.asarray(self.first, jnp.int32)[None, :], axis=1)
        return dataclasses.replace(found, losses=found.losses * jnp.where(rows, self.times, 1.0)[:, None])


def trainer_of(experiment, root):
    plan = make_plan(experiment)
    run = runs.create(root, "faults", steps=experiment.steps)
    return Trainer(plan, run, Fanout(run), Progress(experiment.steps, "tokens", quiet=True), {})


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A text in which no window comes twice."""
    path = tmp_path_factory.mktemp("noise") / "noise.txt"
    path.write_text("".join(chr(c) for c in np.random.default_rng(0).integers(97, 123, 5000)))
    return path


@pytest.fixture
def tiny(tiny, noise):
    return lambda **fields: tiny(dataset=TextFiles(files=str(noise), tokenizer=Bytes(), context=16), **fields)


def poisoned(tiny, times, **fields):
    """The experiment in which a row of batch BAD, and no other row, is poisoned."""
    experiment = tiny(steps=16, steps_per_dispatch=4, checkpoint_every=4, evaluate_splits=(), **fields)
    source = experiment.dataset.source("train")
    batches = train_batches(
        source, batch_size=experiment.batch_size, seed=experiment.seed, rows=slice(None), prefetch=1, workers=0
    )
    row = batches.read(BAD)["inputs"][3]
    batches.close()
    return dataclasses.replace(experiment, objective=Poisoned(first=tuple(row.tolist()), times=times))


def trained(trainer):
    try:
        return trainer.train(trainer.begin(), StopRequest())
    finally:
        trainer.close()
        trainer.tracking.finish("completed")


def test_a_loss_that_is_not_finite_stops_with_the_batch_and_keeps_the_checkpoints(tiny, tmp_path):
    trainer = trainer_of(poisoned(tiny, float("nan")), tmp_path)
    with pytest.raises(Fault, match=f"step {BAD + 1}: the loss or a gradient is not finite") as found:
        trained(trainer)
    assert found.value.step == BAD + 1
    assert trainer.checkpoints.directory.joinpath("4").is_dir()
    assert not trainer.checkpoints.directory.joinpath("8").exists()
    dump = trainer.run.path / "faults" / f"step-{BAD + 1}"
    facts = json.loads((dump / "facts.json").read_text())
    assert facts["batch"] == BAD
    assert any(value == "NaN" for value in facts["gradient_norms"].values())
    assert set(facts["gradient_norms"]) == set(dotted(trainer.plan.abstract.params))
    batch = np.load(dump / "batch.npz")
    source = trainer.plan.experiment.dataset.source("train")
    for row, example in enumerate(facts["examples"]):
        np.testing.assert_array_equal(batch["inputs"][row], source[example]["inputs"])


def test_skip_leaves_the_update_out_and_nothing_else(tiny, tmp_path):
    trainer = trainer_of(poisoned(tiny, float("nan"), on_nonfinite="skip"), tmp_path)
    assert trained(trainer) == "completed"
    rows = [row for row in read_metrics(trainer.run.metrics) if row["context"] == "train"]
    assert [row["step"] for row in rows if not np.isfinite(row["loss"])] == [BAD + 1]
    assert int(trainer.state.step) == 16
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(trainer.state.params))
    assert int(jax.tree.leaves(trainer.state.optimizer)[0].reshape(-1)[0]) == 15  # one update fewer


@pytest.mark.parametrize("kind", ["nonfinite", "spike"])
def test_rewind_goes_back_and_leaves_the_batch_out(tiny, tmp_path, kind):
    fields = {"on_nonfinite": "rewind"} if kind == "nonfinite" else {"on_spike": "rewind", "spike_deviations": 6.0}
    experiment = poisoned(tiny, float("nan") if kind == "nonfinite" else 1e4, **fields)
    if kind == "spike":
        guard_steps, guard.LEAST_STEPS = guard.LEAST_STEPS, 4
    try:
        trainer = trainer_of(experiment, tmp_path)
        assert trained(trainer) == "completed"
    finally:
        if kind == "spike":
            guard.LEAST_STEPS = guard_steps
    rows = [row for row in read_metrics(trainer.run.metrics) if row["context"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert all(np.isfinite(row["loss"]) and row["loss"] < 10 for row in rows)
    assert trainer.batches.state()["next_batch"] == 17
    assert trainer.batches.batches_back(16) == [b for b in range(17) if b != BAD]


def test_the_guard_is_the_exponential_mean_and_variance():
    losses = np.random.default_rng(0).normal(3.0, 0.5, 200).astype(np.float32)
    found = Guard(jnp.float32(0), jnp.float32(0), jnp.int32(0))
    for loss in losses:
        assert int(guard.fault(jnp.float32(loss), jnp.float32(1), found, 8.0)) == guard.FINE
        found = guard.moved(found, jnp.float32(loss), jnp.int32(guard.FINE))
    weights = np.ones(1)
    for n in range(2, 201):
        share = max(1 - guard.DECAY, 1 / n)
        weights = np.append(weights * (1 - share), share)
    mean = np.sum(weights * losses)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance, np.sum(weights * (losses - mean) ** 2), rtol=1e-4)
    assert int(guard.fault(jnp.float32(mean + 20), jnp.float32(1), found, 8.0)) == guard.SPIKE
    assert int(guard.fault(jnp.float32(np.nan), jnp.float32(1), found, 8.0)) == guard.NOT_FINITE
    assert int(guard.fault(jnp.float32(mean), jnp.float32(np.inf), found, 8.0)) == guard.NOT_FINITE
    kept = guard.moved(found, jnp.float32(mean + 20), jnp.int32(guard.SPIKE))
    assert float(kept.mean) == float(found.mean)
