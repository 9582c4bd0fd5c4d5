"""Every shape that is benchmarked, compiled to machine code for an H200 on a machine without one (`make sass`)."""

import jax
import jax.numpy as jnp
import pytest

from assay_kernels import H200
from assay_kernels.linear_cross_entropy import bench, shapes
from compiling import compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")


@pytest.mark.parametrize("way", ["announced", "recomputed", "blocked"])
@pytest.mark.parametrize("name", bench.SHAPES)
def test_linear_cross_entropy_is_what_was_chosen_and_keeps_to_its_memory(name: str, way: str, capfd) -> None:
    shape = bench.SHAPES[name]
    x, w, labels, weights = shape.abstract()
    x, w = (jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for v in (x, w))
    found = compiled(capfd, bench.contenders()[way], x, w, labels, weights)
    assert found.choices == (f"linear_cross_entropy.{'blocked' if way == 'blocked' else 'chunked'}",)
    sizes = shape.tokens, shape.width, shape.classes, 2, H200
    most = (
        shapes.blocked_temp_bound(*sizes)
        if way == "blocked"
        else shapes.temp_bound(*sizes, announced=way == "announced")
    )
    assert found.temp <= most


def test_the_least_memory_is_below_half_a_gibibyte_for_the_largest_shape(capfd) -> None:
    x, w, labels, weights = bench.SHAPES["llama3_8b"].abstract()
    x, w = (jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for v in (x, w))
    assert compiled(capfd, bench.contenders()["blocked"], x, w, labels, weights).temp <= 512 * 2**20
