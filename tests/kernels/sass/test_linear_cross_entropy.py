"""Every shape that is benchmarked, compiled to machine code for an H200 on a machine without one (`make sass`)."""

import jax.numpy as jnp
import pytest

from assay_kernels import H200
from assay_kernels.linear_cross_entropy import bench, shapes
from compiling import compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")


@pytest.mark.parametrize(
    ("name", "way"), [(n, w) for n, s in bench.SHAPES.items() for w in bench.contenders(s) if w != "naive"]
)
def test_linear_cross_entropy_is_what_was_chosen_and_keeps_to_its_memory(name: str, way: str, capfd) -> None:
    shape = bench.SHAPES[name]
    found = compiled(capfd, bench.contenders(shape)[way], *shape.abstract())
    assert found.choices == (f"linear_cross_entropy.{'blocked' if way == 'blocked' else 'chunked'}",)
    sizes = shape.tokens, shape.width, shape.classes, jnp.dtype(shape.dtype).itemsize, H200
    most = (
        shapes.blocked_temp_bound(*sizes)
        if way == "blocked"
        else shapes.temp_bound(*sizes, announced=way == "announced")
    )
    assert found.temp <= most


def test_the_least_memory_is_below_half_a_gibibyte_for_the_largest_shape(capfd) -> None:
    shape = bench.SHAPES["llama3_8b_bf16"]
    assert compiled(capfd, bench.contenders(shape)["blocked"], *shape.abstract()).temp <= 512 * 2**20
