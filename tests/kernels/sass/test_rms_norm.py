"""Every shape that is benchmarked, compiled to machine code for an H200 on a machine without one (`make sass`)."""

import functools
from typing import Any

import jax
import pytest

from assay_kernels import H200
from assay_kernels.rms_norm import bench, rms_norm
from assay_kernels.rms_norm.cases import LARGE_CALLS
from assay_kernels.rms_norm.mosaic import temp_bound
from compiling import compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")
KERNELS = {
    "vjp": {"rms_norm_backward"},
    "added": {"rms_norm_forward"},
    "step": {"rms_norm_forward", "rms_norm_backward"},
}


@pytest.mark.parametrize("name", bench.SHAPES)
def test_a_benchmarked_shape(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    found = compiled(capfd, bench.call(shape, functools.partial(rms_norm, impl="mosaic")), *shape.abstract())
    assert set(found.choices) == {"rms_norm.mosaic"}
    assert found.kernels == KERNELS[shape.mode]
    assert "mosaic_gpu_v2" in found.custom_calls
    assert found.temp <= temp_bound(shape.width, H200.cores)


@pytest.mark.parametrize("name", LARGE_CALLS)
def test_a_large_case(name: str, capfd) -> None:
    call = LARGE_CALLS[name]
    x, w = (jax.ShapeDtypeStruct(s, call.dtype) for s in ((*call.items, call.width), (call.width,)))

    def gradients(x: jax.Array, w: jax.Array) -> Any:
        found, transpose = jax.vjp(lambda x, w: rms_norm(x, w, residual=x if call.residual else None), x, w)
        return transpose(found)

    assert "mosaic_gpu_v2" in compiled(capfd, gradients, x, w).custom_calls
