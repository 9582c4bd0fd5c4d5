"""A checkpoint whose files are not what was written is found, named and never restored."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.checkpoint import manifest
from assay.checkpoint.checkpoints import Checkpoints
from assay.checkpoint.digests import digests
from assay.errors import CheckpointError

STATE = {"a": jnp.arange(24, dtype=jnp.float32).reshape(4, 6), "b": {"n": jnp.int32(7), "flag": jnp.ones(3, jnp.bool_)}}
HARM = {
    "truncate": lambda path, data: path.write_bytes(data[:-1]),
    "flip": lambda path, data: path.write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "delete": lambda path, data: path.unlink(),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(directory, keep=3)
    for step in (10, 20):
        checkpoints.save(
            step, jax.tree.map(lambda x, s=step: x + s if x.dtype != bool else x, STATE), {"step": step}, {}
        )
    checkpoints.wait()
    checkpoints.close()
    return directory


@pytest.mark.parametrize("harm", HARM)
def test_harm_to_any_file_is_found_and_the_one_before_is_taken(saved, tmp_path, harm):
    names = [path.relative_to(saved / "20") for path in (saved / "20").rglob("*") if path.is_file()]
    assert len(names) >= 8
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)
    for name in names:
        directory = tmp_path / "copy"
        shutil.copytree(saved, directory)
        path = directory / "20" / name
        HARM[harm](path, path.read_bytes())
        reports = []
        assert manifest.newest_whole(directory, reports.append) == 10, name
        assert str(name) in reports[0]
        checkpoints = Checkpoints(directory, read_only=True)
        with pytest.raises(CheckpointError, match=r"damaged|cannot be read|no checkpoint"):
            checkpoints.restore(20, abstract)
        checkpoints.close()
        shutil.rmtree(directory)


def test_a_checkpoint_set_aside_makes_room_for_the_same_step(saved, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    assert manifest.set_aside(directory, 20).name == "damaged-20"
    checkpoints = Checkpoints(directory, keep=3)
    assert checkpoints.steps() == [10]
    checkpoints.save(20, STATE, {}, {})
    checkpoints.wait()
    checkpoints.close()
    assert manifest.set_aside(directory, 20).name == "damaged-20-1"
    assert manifest.steps(directory) == [10]


def test_values_that_come_back_changed_are_not_handed_out(saved, monkeypatch):
    checkpoints = Checkpoints(saved, read_only=True)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)
    assert int(checkpoints.restore(20, abstract)["b"]["n"]) == 27
    read = checkpoints._manager.restore

    def changed(*words, **named):
        found = read(*words, **named)
        if "state" in found:
            found["state"]["b.n"] = found["state"]["b.n"] + 1
        return found

    monkeypatch.setattr(checkpoints._manager, "restore", changed)
    with pytest.raises(CheckpointError, match=r"b\.n came back with other values"):
        checkpoints.restore(20, abstract)
    checkpoints.close()


def test_digests_do_not_depend_on_the_devices_and_see_every_bit():
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("d",))
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    one = digests({"x": jnp.asarray(x)})
    assert digests({"x": split}) == one
    flipped = x.copy()
    flipped.view(np.uint32)[3, 4] ^= 1
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert len({digests({"x": jnp.asarray(v)})["x"] for v in (x, flipped, swapped)}) == 3
    for dtype in (jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_, jnp.int4, jnp.float8_e4m3fn, jnp.complex64):
        values = jnp.asarray([1, 0, 1, 1], dtype)
        assert digests({"x": values}) != digests({"x": values[::-1]})


def test_checkpoints_without_metrics_do_not_crowd_out_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best="validation/loss")
    for step, metrics in ((1, {"validation/loss": 1.0}), (2, {"validation/loss": 3.0}), (3, {}), (4, {}), (5, {})):
        checkpoints.save(step, STATE, {}, metrics)
        checkpoints.wait()
    assert checkpoints.steps() == [1, 5]
    assert checkpoints.best() == 1
    checkpoints.close()


@pytest.mark.parametrize("best", ["validation/loss", "+validation/loss"])
def test_a_value_that_is_not_a_number_is_never_the_best(tmp_path, best):
    checkpoints = Checkpoints(tmp_path, keep=1, best=best)
    for step, value in ((1, float("nan")), (2, 3.0), (3, float("nan")), (4, 3.0), (5, float("nan"))):
        checkpoints.save(step, STATE, {}, {"validation/loss": value})
        checkpoints.wait()
    assert checkpoints.best() in (2, 4)
    assert 5 in checkpoints.steps()
    checkpoints.close()


def test_a_manifest_of_another_format_is_refused(saved, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    path = directory / "20" / manifest.NAME
    body = json.loads(path.read_text()) | {"format": 99}
    del body["digest"]
    path.write_text(json.dumps(body | {"digest": manifest._digest(body)}))
    checkpoints = Checkpoints(directory, read_only=True)
    with pytest.raises(CheckpointError, match="format 99, this Assay reads format 1"):
        checkpoints.extra(20)
    checkpoints.close()
