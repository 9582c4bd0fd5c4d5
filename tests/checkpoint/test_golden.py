"""A run of release 0.1.0 (tests/golden/run, stopped at step 10 of 20) must go on for ever: same arrays, same batches, same losses.

Never make the run anew because this test fails: a release that cannot read it breaks what users have.
"""

import shutil
from pathlib import Path

import jax
import pytest

from assay.checkpoint import manifest
from assay.checkpoint.checkpoints import Checkpoints
from assay.checkpoint.digests import digests
from assay.runs import open_run, read_metrics
from assay.train import launch

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
STEP = 10


@pytest.fixture
def run(tmp_path):
    return open_run(shutil.copytree(GOLDEN, tmp_path / "golden"))


def losses(run):
    return {(r["context"], r["step"]): r["loss"] for r in read_metrics(run.metrics) if "loss" in r}


def test_its_checkpoint_is_restored_bit_by_bit(run):
    assert manifest.damage(run.checkpoints / str(STEP)) == []
    _, state, step = launch.restored(run)
    assert step == int(state.step) == STEP
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    saved = checkpoints.extra(STEP)["digests"]
    checkpoints.close()
    assert digests(state) == saved
    assert state.ema is not None
    assert int(state.guard.count) == STEP
    assert len(jax.tree.leaves(state.optimizer)) >= 2 * len(jax.tree.leaves(state.params))


def test_it_goes_on_as_the_release_did(run):
    before = losses(run)
    finished = launch.resume(run)
    assert (finished.status, finished.step) == ("completed", 20)
    after = losses(run)
    assert after.keys() == before.keys()
    assert {("train", step) for step in range(1, 21)} <= after.keys()
    assert after == pytest.approx(before, rel=1e-4)
