"""attention's kernels compiled to machine code for an H200 on a machine without one (`make sass`)."""

import jax
import jax.numpy as jnp
import pytest

from assay_kernels import compat
from assay_kernels.attention import attention, bench
from compiling import compiled

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")
ONCE = {
    name: shape
    for name, shape in bench.SHAPES.items()
    if ("gpu" in shape.on and "causal 4096" in name) or shape.softcap
}
OTHERS = {"llama3_8b 8192 both", "window 8192 both", "packed 4096 both", "gpt2_124m both", "d128 full 4096 forward"}
NAMES = [
    name for name in bench.SHAPES if name in ONCE or name in OTHERS
]  # the others differ in their number of tokens alone


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_compile_without_spills_and_keep_to_their_memory(name: str, capfd) -> None:
    shape = bench.SHAPES[name]
    found = compiled(capfd, bench.contenders(shape)["mosaic"], *shape.abstract())
    assert found.choices == ("attention.mosaic",)
    assert "mosaic_gpu_v2" in found.custom_calls
    forward = {"attention_forward"}
    assert found.kernels >= (forward if shape.direction == bench.FORWARD else forward | {"attention_backward_queries"})
    assert found.temp <= temp_bound(shape)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192])
def test_every_mask_at_once_compiles_without_spills(head_dim: int, capfd) -> None:
    """Odd lengths, a window, segments, a soft-cap, a traced offset, lse and grouped keys."""
    q, k = (jax.ShapeDtypeStruct((2, *shape, head_dim), jnp.float16) for shape in ((1001, 4), (1501, 2)))
    ids, offset = jax.ShapeDtypeStruct((2, 1501), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, offset: jax.Array) -> jax.Array:
        options = {
            "causal": True,
            "window": 300,
            "softcap": 30.0,
            "offset": offset,
            "return_lse": True,
            "impl": "mosaic",
        }
        out, lse = attention(q, k, v, q_segment_ids=ids[:, :1001], kv_segment_ids=ids, **options)
        return jnp.sum(out.astype(jnp.float32) ** 2) + jnp.sum(lse)

    found = compiled(capfd, jax.grad(loss, (0, 1, 2)), q, k, k, ids, offset)
    assert found.choices == ("attention.mosaic",)


def test_cudnn_is_what_auto_takes_where_it_is_to_be_had(capfd) -> None:
    if not compat.has_cudnn():
        pytest.skip("jax finds no cuDNN: the package nvidia-cudnn-cu13 is not installed")
    shape = bench.SHAPES["d128 causal 4096 both"]
    found = compiled(capfd, bench.contenders(shape)["auto"], *shape.abstract())
    assert found.choices == ("attention.cudnn",)
    assert {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} <= found.custom_calls


def temp_bound(shape: bench.Shape) -> int:
    """Bytes of temporary memory: lse and delta in fp32 for each query, the output that the backward pass needs, and small tables."""
    rows = shape.batch * shape.heads * -(-shape.queries // 128) * 128
    kept = 0 if shape.direction == bench.FORWARD else rows * shape.head_dim * 2
    return kept + 5 * 4 * rows + (1 << 20)
