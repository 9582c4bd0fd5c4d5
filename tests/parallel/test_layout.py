"""Meshes, rules, and the errors of arrays that do not fit."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from assay.errors import LayoutError
from assay.parallel.layout import bytes_per_device, make_layout, parameter_shardings, state_shardings


class Grid:
    """A parallelism plugin with the mesh and rules it is given."""

    def __init__(self, mesh, rules):
        self._mesh, self._rules = mesh, rules

    def mesh_axes(self):
        return self._mesh

    def rules(self):
        return self._rules


RULES = {"batch": ("data", "fsdp"), "embed": ("fsdp",), "mlp": ("tensor",)}


def layout(**mesh):
    return make_layout(Grid(mesh, RULES), where=lambda key: "x.gin:7")


def test_the_rest_of_the_devices():
    assert dict(layout(data=-1, fsdp=2, tensor=2).mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_mesh_may_use_the_first_devices_only():
    assert layout(data=1, fsdp=2, tensor=1).mesh.devices.ravel().tolist() == jax.devices()[:2]


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ({"data": -1, "fsdp": 3, "tensor": 1}, "8 devices cannot be divided by 3"),
        ({"data": 4, "fsdp": 4, "tensor": 1}, "needs 16 devices and there are 8"),
        ({"data": -1, "fsdp": -1, "tensor": 1}, "at most one may be -1"),
        ({"data": 0, "fsdp": 1, "tensor": 1}, "at least 1"),
        ({"data": 1, "tensor": 1}, "mesh axes ['fsdp']"),
    ],
)
def test_a_mesh_that_does_not_fit(mesh, words):
    with pytest.raises(LayoutError) as caught:
        layout(**mesh)
    assert words in str(caught.value)
    assert "x.gin:7" in str(caught.value)


def test_specs():
    spec = layout(data=2, fsdp=2, tensor=2).spec
    assert spec(("embed", "mlp")) == P("fsdp", "tensor")
    assert spec(("batch", "sequence", None)) == P(("data", "fsdp"), None, None)


@pytest.mark.parametrize(
    ("shape", "axes", "words"),
    [
        ((6, 4), ("embed", "mlp"), ["axis 'embed' of size 6", "fsdp = 4"]),
        ((8, 4), ("embd", None), ["unknown logical axis 'embd'", "Did you mean 'embed'"]),
        ((8, 4), ("embed",), ["names 1 axes"]),
        ((8, 8), ("embed", "embed"), ["two of its axes"]),
    ],
)
def test_a_parameter_that_does_not_fit(shape, axes, words):
    tree = {"block": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}
    with pytest.raises(LayoutError) as caught:
        parameter_shardings(layout(data=1, fsdp=4, tensor=2), tree, {"block": {"kernel": axes}})
    place = [] if "names 1 axes" in words[0] else ["x.gin:7"]  # a wrong number of axes is the model's mistake
    for word in [*words, *place, "block/kernel", str(shape)]:
        assert word in str(caught.value)


def test_every_misfit_is_reported_at_once():
    tree = {name: jax.ShapeDtypeStruct((3,), jnp.float32) for name in "ab"}
    with pytest.raises(LayoutError) as caught:
        parameter_shardings(layout(data=1, fsdp=4, tensor=2), tree, {"a": ("embed",), "b": ("mlp",)})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "optimizer", [optax.adamw(1e-3), optax.chain(optax.clip(1.0), optax.lion(1e-3)), optax.sgd(1e-3, 0.9)]
)
def test_optimizer_state_lives_where_its_parameters_live(optimizer):
    grid = layout(data=1, fsdp=4, tensor=2)
    params = {"kernel": jnp.zeros((8, 6)), "nested": {"bias": jnp.zeros((6,))}}
    shardings = parameter_shardings(grid, params, {"kernel": ("embed", "mlp"), "nested": {"bias": ("mlp",)}})
    state = jax.eval_shape(optimizer.init, params)
    placed = state_shardings(grid, state, params, shardings)
    specs = {x.shape: s.spec for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)}
    assert specs[(8, 6)] == P("fsdp", "tensor")
    assert specs[(6,)] == P("tensor")
    assert bytes_per_device(params, shardings) == 4 * (2 * 3 + 3)


def test_factored_statistics_keep_the_dimension_they_have():
    grid = layout(data=1, fsdp=4, tensor=2)
    params = {"kernel": jnp.zeros((256, 128))}
    shardings = parameter_shardings(grid, params, {"kernel": ("embed", "mlp")})
    state = jax.eval_shape(optax.adafactor(1e-3).init, params)
    placed = state_shardings(grid, state, params, shardings)
    specs = {x.shape: s.spec for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)}
    assert specs[(256,)] == P("fsdp")
    assert specs[(128,)] == P("tensor")


def test_a_process_without_a_device_in_the_mesh_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(LayoutError, match="process 1 has none of them"):
        layout(data=2, fsdp=2, tensor=2)
