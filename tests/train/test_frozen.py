"""Parameters that are not trained, and parameters that come from a file: training, checkpoints, meshes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from assay import config, registry
from assay.checkpoint.checkpoints import Checkpoints
from assay.data.spec import DataSpec
from assay.errors import CheckpointError, PluginError
from assay.network import Frozen
from assay.plan.plan import make_plan
from assay.runs import open_run
from assay.train.begin import digests, drawn
from assay.train.launch import restored, resume, start

EXPERIMENT = """
experiment.model = @model.adapted()
model.adapted.path = '{path}'
experiment.dataset = @dataset.digits()
experiment.objective = @objective.classification()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-2
optimizer.adamw.weight_decay = 0.1
experiment.parallelism = @parallelism.fsdp()
parallelism.fsdp.fsdp = 8
experiment.trackers = []
experiment.steps = 4
experiment.steps_per_dispatch = 2
experiment.batch_size = 16
experiment.log_every = 1
experiment.checkpoint_every = 2
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """A frozen matrix from a file, then a trained one, which the file may have too."""

    path: str

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> nnx.Module:
        return Net(rngs)

    def initial_values(self, spec: DataSpec) -> dict[str, np.ndarray]:
        with np.load(self.path) as arrays:
            return dict(arrays)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        draw = nnx.initializers.he_normal()
        self.base = Frozen(draw(rngs.params(), (64, 32)), axes=("features", "mlp"))
        self.head = nnx.Param(draw(rngs.params(), (32, 10)), axes=("mlp", "classes"))

    def __call__(self, batch, *, train, rngs):
        return jax.nn.relu(batch["image"].reshape(-1, 64) @ self.base[...]) @ self.head[...]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "values.npz"
    np.savez(path, base=np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32) / 8)
    return path


@pytest.fixture
def load(file):
    with registry.temporary("model", "adapted", Adapted):
        yield lambda: config.load_text(EXPERIMENT.format(path=file), "adapted.gin")


def test_values_of_a_file_replace_what_was_drawn_and_the_rest_is_drawn(load, file) -> None:
    plan = make_plan(load().experiment)
    state = drawn(plan)
    assert np.array_equal(state.frozen["base"], np.load(file)["base"])
    assert state.frozen["base"].sharding.spec == jax.sharding.PartitionSpec("fsdp", None)
    expected, _ = jax.jit(plan.network.init)(jax.random.fold_in(jax.random.key(0), 0))
    np.testing.assert_array_equal(state.params["head"], expected["head"])


def test_a_frozen_parameter_is_neither_trained_nor_saved_and_is_there_again_later(load, file, tmp_path) -> None:
    run = start(load(), tmp_path / "runs").run
    assert [p for p in saved_names(run.checkpoints, 4) if p.startswith("frozen")] == []
    assert "params.head" in saved_names(run.checkpoints, 4)
    _, state, step = restored(run)
    assert step == 4
    assert np.array_equal(state.frozen["base"], np.load(file)["base"])
    fresh = drawn(make_plan(load().experiment))
    assert not np.array_equal(state.params["head"], fresh.params["head"])


def test_a_run_resumed_with_frozen_parameters_ends_where_an_uninterrupted_one_does(load, tmp_path) -> None:
    whole = start(load(), tmp_path / "whole").run
    cut = start(load(), tmp_path / "cut").run
    checkpoints = Checkpoints(cut.checkpoints)
    checkpoints._manager.delete(4)
    checkpoints.close()
    resume(open_run(cut.id, tmp_path / "cut"))
    for one, two in zip(jax.tree.leaves(restored(whole)[1]), jax.tree.leaves(restored(cut)[1]), strict=True):
        assert np.array_equal(one, two)


def test_a_file_that_changed_since_training_is_named(load, file, tmp_path) -> None:
    run = start(load(), tmp_path / "runs").run
    changed = dict(np.load(file))
    changed["base"][3, 5] += 1e-3
    np.savez(file, **changed)
    with pytest.raises(CheckpointError, match=r"trained with other frozen parameters \(base\); restore the files"):
        restored(run)


def test_values_that_do_not_fit_are_all_named(load, file) -> None:
    np.savez(file, base=np.zeros((64, 31), np.float32), extra=np.zeros(3, np.float32))
    with pytest.raises(PluginError) as caught:
        drawn(make_plan(load().experiment))
    assert "base: has shape (64, 31), the model's is (64, 32)" in str(caught.value)
    assert "extra: the model has no such parameter" in str(caught.value)


def test_a_digest_depends_on_values_and_places_and_not_on_the_mesh() -> None:
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    divided = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    assert digests({"a": divided}) == digests({"a": jax.numpy.asarray(x)})
    assert digests({"a": x[::-1]}) != digests({"a": x})


def saved_names(directory: Path, step: int) -> list[str]:
    checkpoints = Checkpoints(directory, read_only=True)
    names = list(checkpoints._manager.item_metadata(step)["state"].tree)
    checkpoints.close()
    return names
