"""The layouts: their meshes, and that parameters of every kind of network are divided as they say."""

import jax
import numpy as np
import pytest

from assay.kinds import Parallelism
from assay.parallel.axes import AXES
from assay.parallel.layout import bytes_per_device, make_layout, parameter_shardings
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.parallelism.fsdp import FSDP
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
from assay_plugins.parallelism.tensor import Tensor

ALL = [DataParallel, FSDP, Tensor, FSDPTensor]

TRANSFORMER = {
    "embedding": ((64, 32), ("vocab", "embed")),
    "position": ((16, 32), ("position", "embed")),
    "query": ((32, 4, 8), ("embed", "heads", "head_dim")),
    "key": ((32, 8, 8), ("embed", "kv_heads", "head_dim")),
    "out": ((32, 32), ("heads", "embed")),
    "up": ((32, 128), ("embed", "mlp")),
    "down": ((128, 32), ("mlp", "embed")),
    "head": ((32, 64), ("embed", "vocab")),
}
RESNET = {
    "stem": ((3, 3, 1, 16), (None, None, "conv_in", "conv_out")),
    "conv": ((3, 3, 16, 32), (None, None, "conv_in", "conv_out")),
    "norm": ((32,), ("conv_out",)),
    "head": ((32, 10), ("features", "classes")),
}
MLP = {"in": ((64, 32), ("features", "mlp")), "out": ((32, 10), ("features", "classes"))}
NETWORKS = {"transformer": TRANSFORMER, "resnet": RESNET, "mlp": MLP}


def shares(parallelism, network):
    """By parameter, the share of it that one device holds."""
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, (shape, _) in network.items()}
    placed = parameter_shardings(make_layout(parallelism), shapes, {name: axes for name, (_, axes) in network.items()})
    return {name: bytes_per_device(shapes[name], placed[name]) / (4 * np.prod(shapes[name].shape)) for name in shapes}


@pytest.mark.parametrize("plugin", ALL)
def test_a_plugin_of_its_kind_whose_rules_are_about_known_axes(plugin):
    parallelism = plugin()
    assert isinstance(parallelism, Parallelism)
    assert set(parallelism.rules()) <= set(AXES)
    assert make_layout(parallelism).mesh.size == jax.device_count()


@pytest.mark.parametrize(
    ("parallelism", "mesh", "batch_shards"),
    [
        (DataParallel(), {"data": 8}, 8),
        (DataParallel(data=2), {"data": 2}, 2),
        (FSDP(), {"data": 1, "fsdp": 8}, 8),
        (FSDP(fsdp=4, data=-1), {"data": 2, "fsdp": 4}, 8),
        (Tensor(), {"data": 1, "tensor": 8}, 1),
        (Tensor(tensor=2, data=-1), {"data": 4, "tensor": 2}, 4),
        (FSDPTensor(), {"data": 1, "fsdp": 4, "tensor": 2}, 4),
        (FSDPTensor(data=2, fsdp=2, tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}, 4),
    ],
)
def test_meshes(parallelism, mesh, batch_shards):
    layout = make_layout(parallelism)
    assert dict(layout.mesh.shape) == mesh
    assert list(layout.mesh.shape) == list(mesh)
    assert layout.batch_shards == batch_shards


@pytest.mark.parametrize("network", NETWORKS)
def test_fsdp_divides_every_parameter(network):
    assert set(shares(FSDP(), NETWORKS[network]).values()) == {1 / 8}


def test_tensor_divides_what_a_block_multiplies_with():
    found = shares(Tensor(tensor=4, data=2), TRANSFORMER)
    assert found == dict.fromkeys(TRANSFORMER, 1 / 4) | {"position": 1}


def test_both_divide_both_dimensions():
    found = shares(FSDPTensor(data=1, fsdp=2, tensor=4), TRANSFORMER)
    assert found == dict.fromkeys(TRANSFORMER, 1 / 8) | {"position": 1 / 2}
    assert set(shares(FSDPTensor(data=1, fsdp=2, tensor=4), RESNET).values()) == {1 / 2}
    assert shares(FSDPTensor(data=1, fsdp=2, tensor=4), MLP) == {"in": 1 / 8, "out": 1 / 2}


@pytest.mark.parametrize("network", NETWORKS)
def test_data_parallel_replicates(network):
    assert set(shares(DataParallel(), NETWORKS[network]).values()) == {1}


@pytest.mark.parametrize(
    ("plugin", "sizes", "words"),
    [
        (DataParallel, {"data": 0}, "data = 0"),
        (FSDP, {"fsdp": -2}, "fsdp = -2"),
        (FSDP, {"data": -1}, "data and fsdp are -1"),
        (Tensor, {"tensor": 0}, "tensor = 0"),
        (FSDPTensor, {"data": -1}, "data and fsdp are -1"),
        (FSDPTensor, {"tensor": -1}, "fsdp and tensor are -1"),
    ],
)
def test_sizes_that_cannot_be(plugin, sizes, words):
    with pytest.raises(ValueError, match=words):
        plugin(**sizes)
