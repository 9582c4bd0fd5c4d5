"""Checkpoints: what is kept, restored where, and said when something is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from assay.checkpoint.checkpoints import Checkpoints
from assay.errors import CheckpointError

STATE = {"params": {"kernel": jnp.arange(32.0).reshape(8, 4)}, "step": jnp.int32(3), "ema": None}


def placed(state, count, spec):
    mesh = Mesh(np.array(jax.devices()[:count]), ("x",))
    sharding = {2: NamedSharding(mesh, spec), 0: NamedSharding(mesh, P())}
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding[x.ndim]), state)


@pytest.fixture
def checkpoints(tmp_path):
    manager = Checkpoints(tmp_path / "checkpoints", keep=2, best="validation/loss")
    yield manager
    manager.close()


def test_restores_onto_another_mesh(checkpoints):
    four = jax.device_put(STATE, jax.tree.map(lambda x: x.sharding, placed(STATE, 4, P("x"))))
    checkpoints.save(1, four, {"iterator": {"batch": 7}}, {"validation/loss": 1.0})
    checkpoints.wait()
    restored = checkpoints.restore(1, placed(STATE, 2, P(None, "x")))
    np.testing.assert_array_equal(restored["params"]["kernel"], STATE["params"]["kernel"])
    assert restored["params"]["kernel"].sharding.shard_shape((8, 4)) == (8, 2)
    assert int(restored["step"]) == 3
    assert checkpoints.extra(1)["iterator"] == {"batch": 7}


def test_a_part_of_a_checkpoint_can_be_restored(checkpoints):
    checkpoints.save(1, STATE, {}, {"validation/loss": 1.0})
    checkpoints.wait()
    part = checkpoints.restore(1, {"params": placed(STATE, 1, P())["params"]})
    np.testing.assert_array_equal(part["params"]["kernel"], STATE["params"]["kernel"])


def test_keeps_the_newest_and_the_best_also_after_reopening(tmp_path, checkpoints):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 5.0)]:
        checkpoints.save(step, STATE, {}, {"validation/loss": loss})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3, 4]
    again = Checkpoints(tmp_path / "checkpoints", keep=2, best="validation/loss")
    again.save(5, STATE, {}, {"validation/loss": 4.0})
    again.wait()
    assert (again.steps(), again.best()) == ([2, 4, 5], 2)
    again.close()


def test_higher_is_better_with_a_plus(tmp_path):
    manager = Checkpoints(tmp_path / "c", keep=1, best="+accuracy")
    for step, accuracy in [(1, 0.9), (2, 0.5)]:
        manager.save(step, STATE, {}, {"accuracy": accuracy})
    manager.wait()
    assert manager.best() == 1
    manager.close()


def test_a_missing_step_names_those_there_are(checkpoints):
    checkpoints.save(5, STATE, {}, {"validation/loss": 1.0})
    checkpoints.wait()
    assert checkpoints.step() == 5
    with pytest.raises(CheckpointError, match=r"of step 4.*there are steps \[5\]"):
        checkpoints.step(4)


def test_another_shape_or_name_is_refused_by_name(checkpoints):
    checkpoints.save(1, STATE, {}, {"validation/loss": 1.0})
    checkpoints.wait()
    other = {"params": {"kernel": placed(jnp.zeros((2, 2)), 1, P()), "bias": placed(jnp.zeros((2, 2)), 1, P())}}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(1, other)
    assert "params.kernel: saved with shape (8, 4), needed (2, 2)" in str(caught.value)
    assert "params.bias: not in the checkpoint" in str(caught.value)


def test_another_format_is_refused(checkpoints):
    checkpoints.save(1, STATE, {"format": 99}, {"validation/loss": 1.0})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="has format 99"):
        checkpoints.extra(1)


def test_an_unfinished_checkpoint_is_not_one(tmp_path, checkpoints):
    checkpoints.save(1, STATE, {}, {"validation/loss": 1.0})
    checkpoints.wait()
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-1700000000000000").mkdir()
    again = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert again.steps() == [1]
    again.close()
