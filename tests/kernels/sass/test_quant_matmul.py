"""quant_matmul of every benchmarked shape, compiled to machine code for an H200 on a machine without one (`make sass`)."""

import functools

import jax
import pytest

from assay_kernels import H200
from assay_kernels.quant_matmul import QuantizedWeights, bench, mosaic, quant_matmul
from compiling import compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")
CHANNELS = [name for name, shape in bench.SHAPES.items() if shape.group is None]


def product(form, x, values, scales):
    return quant_matmul(x, QuantizedWeights(values, scales, form))


@pytest.mark.parametrize("name", [name for name in bench.SHAPES if name not in CHANNELS])
def test_groups_are_the_kernels_and_keep_to_their_memory(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    found = compiled(capfd, functools.partial(product, shape.format), *shape.abstract()[:3])
    assert found.choices == ("quant_matmul.mosaic",)
    assert [k.name for k in found.kernels] == ["quant_matmul"]
    config = mosaic.rule(shape.rows, shape.format, H200)
    assert found.temp <= mosaic.temp_bound(shape.rows, shape.format, config)


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_multiplied_without_a_copy_of_the_weights(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    found = compiled(capfd, functools.partial(product, shape.format), *shape.abstract()[:3])
    assert found.choices == ("quant_matmul.xla",)
    assert found.temp < shape.k * shape.n // 4


def test_the_gradient_compiles(capfd) -> None:
    shape = bench.SHAPES["int4_16"]
    total = lambda *arrays: product(shape.format, *arrays).astype("float32").sum()
    found = compiled(capfd, jax.grad(total), *shape.abstract()[:3])
    assert found.choices == ("quant_matmul.mosaic",)
