"""Every shape that is benchmarked, compiled to machine code for an H200 on a machine without one (`make sass`)."""

import jax
import pytest

from assay_kernels.linear_scan import bench
from assay_kernels.linear_scan.cases import LARGE_CALLS
from assay_kernels.linear_scan.mosaic import mosaic, temp_bound
from compiling import compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")


@pytest.mark.parametrize("name", [name for name, shape in bench.SHAPES.items() if shape.dtype == "bfloat16"])
def test_a_benchmarked_shape(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    found = compiled(capfd, bench.call(shape, "mosaic"), *shape.abstract())
    assert set(found.choices) == {"linear_scan.mosaic"}
    assert ("mosaic_gpu_v2" in found.custom_calls) != shape.gradient
    if not shape.gradient:
        assert found.temp <= temp_bound(shape.batch, shape.seq, shape.heads, shape.head_dim, shape.state)


@pytest.mark.parametrize("name", LARGE_CALLS)
def test_a_large_case(name: str, capfd) -> None:
    *arrays, options = LARGE_CALLS[name].draw(0)
    given = {i: v for i, v in enumerate(arrays) if v is not None}

    def call(*found: jax.Array) -> object:
        at = dict(zip(given, found, strict=True))
        return mosaic(*(at.get(i) for i in range(6)), options)

    assert "mosaic_gpu_v2" in compiled(capfd, call, *given.values()).custom_calls
