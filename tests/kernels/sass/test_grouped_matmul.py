"""Every shape of grouped_matmul that is benchmarked, compiled to machine code for an H200 on a machine without one (`make sass`)."""

import jax
import jax.numpy as jnp
import pytest

from assay_kernels import H200, for_target
from assay_kernels.aot import compile_for_h200
from assay_kernels.grouped_matmul import bench, grouped_matmul
from assay_kernels.grouped_matmul.configs import temp_bound
from compiling import ENTRY, compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")
KERNELS = {"forward": "grouped_matmul_kn", "towards_x": "grouped_matmul_nk", "towards_w": "grouped_matmul_outer"}
HALVES = [name for name, shape in bench.SHAPES.items() if shape.dtype == "bfloat16" and not name.endswith("_even")]


@pytest.mark.parametrize("name", HALVES)
def test_one_kernel_that_keeps_to_its_memory(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    with for_target(H200):
        ways = bench.contenders(shape)
    found = compiled(capfd, ways["mosaic"], *shape.abstract())
    assert found.choices == ("grouped_matmul.mosaic",)
    assert "mosaic_gpu_v2" in found.custom_calls
    assert found.kernels == {KERNELS[shape.product]}
    assert found.temp <= temp_bound(shape.rows, shape.width, shape.columns, shape.groups, 2)


@pytest.mark.parametrize("transpose_w", [False, True])
def test_a_training_step_s_products_are_three_kernels(transpose_w: bool, capfd) -> None:
    x, sizes = jax.ShapeDtypeStruct((8192, 2048), jnp.float16), jax.ShapeDtypeStruct((16,), jnp.int32)
    w = jax.ShapeDtypeStruct((16, 768, 2048) if transpose_w else (16, 2048, 768), jnp.float16)

    def gradients(x: jax.Array, w: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
        loss = lambda x, w: jnp.sum(jnp.square(grouped_matmul(x, w, sizes, transpose_w=transpose_w)))
        return jax.grad(loss, (0, 1))(x, w)

    found = compiled(capfd, gradients, x, w, sizes)
    assert found.kernels == set(KERNELS.values())


@pytest.mark.parametrize("columns", [64, 192, 576])
def test_narrow_tiles_and_a_result_in_fp32(columns: int, capfd) -> None:
    x, sizes = jax.ShapeDtypeStruct((1003, 576), jnp.bfloat16), jax.ShapeDtypeStruct((5,), jnp.int32)
    w = jax.ShapeDtypeStruct((5, 576, columns), jnp.bfloat16)
    loss = lambda x, w, sizes: jnp.sum(grouped_matmul(x, w, sizes, out_dtype="float32"))
    found = compiled(capfd, jax.grad(loss, (0, 1)), x, w, sizes)
    assert found.kernels >= {"grouped_matmul_nk", "grouped_matmul_outer"}


@pytest.mark.parametrize(
    "name", ["mixtral_forward", "deepseek_v3_towards_x", "gpt_oss_20b_forward", "mixtral_towards_w"]
)
def test_what_tuning_tries_compiles_without_spills(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    tunable = bench.TUNABLE["mosaic_outer" if shape.product == "towards_w" else "mosaic"]
    capfd.readouterr()
    space = tunable.space(shape)
    for config in [c for c in space if c.together == 16]:
        compile_for_h200(tunable.run(shape, config), *shape.abstract())
    said = "".join(capfd.readouterr())
    found = [int(m["stores"]) + int(m["loads"]) for m in ENTRY.finditer(said)]
    assert found
    assert not any(found)
