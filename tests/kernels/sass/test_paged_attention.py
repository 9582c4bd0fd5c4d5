"""paged_attention of every benchmarked shape, compiled to machine code for an H200 on a machine without one (`make sass`)."""

import functools

import pytest

from assay_kernels import H200, for_target
from assay_kernels.paged_attention import bench, mosaic, paged_attention
from assay_kernels.paged_attention.shapes import Options
from compiling import compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")


@pytest.mark.parametrize("name", bench.SHAPES)
def test_it_is_the_kernel_and_keeps_to_its_memory(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    q, k_pages, *_, table, _ = shape.abstract()
    call = functools.partial(paged_attention, window=shape.window, softcap=shape.softcap, return_lse=True)
    found = compiled(capfd, call, *shape.abstract())
    assert found.choices == ("paged_attention.mosaic",)
    assert found.kernels == {"paged_attention"}
    with for_target(H200):
        config = mosaic.rule(*[int(v) for v in mosaic.key(q, k_pages, table, shape.window).values()][:4], H200)
        plan = mosaic.planned(q, k_pages, None, Options(1.0, shape.window, shape.softcap), config)
    assert found.temp <= mosaic.temp_bound(plan, q.dtype)
