"""A chain of calls, compiled for an H200: every call is in it, waits for the one before, and copies nothing."""

import re

import jax
import jax.numpy as jnp
import pytest

from assay_kernels import timing
from assay_kernels.aot import compile_for_h200

pytest.importorskip("jax_cuda13_plugin", reason="needs XLA's CUDA compiler: run `make sass`")


def test_a_chain_holds_its_calls_and_no_copies() -> None:
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((512, 256), (256, 128)))
    structure = jax.tree.structure((x, w))
    first = jax.ShapeDtypeStruct((), jnp.bfloat16)

    def chained(a: jax.Array, b: jax.Array, w: jax.Array, first: jax.Array) -> list[jax.Array]:
        fixed = [timing.Fixed((), (w,), first, structure) for _ in range(2)]
        cast = lambda x, w: x @ (w * 2)  # of which XLA would move w * 2 out of the loop
        return timing.chain(cast, 5)([a, b], fixed)

    text = compile_for_h200(chained, x, x, w, first).as_text()
    inside = text[: text.index("\nENTRY")]
    taps = re.findall(r"dynamic_update_slice_fusion[\w.]* = bf16\[512,256\]\S* fusion\(", inside)
    products = re.findall(r'= bf16\[512,128\]\S* (?:fusion|custom-call)\([^\n]*op_name="[^"]*/dot_general', inside)
    assert (len(taps), len(products)) == (2, 2)
    assert not re.search(r"= bf16\[512,256\]\S* copy\(", inside)
    assert not re.search(r"= bf16\[256,128\]\S* copy\(", text)


def test_the_taps_of_a_chain_that_does_nothing_are_all_there() -> None:
    one = jax.ShapeDtypeStruct((128,), jnp.float32)
    structure = jax.tree.structure((one,))

    def chained(arrays: list[jax.Array], first: jax.Array) -> list[jax.Array]:
        return timing.chain(lambda x: x, 5)(arrays, [timing.Fixed((), (), first, structure) for _ in arrays])

    text = compile_for_h200(lambda *arrays: chained(list(arrays), arrays[0][0]), *[one] * 4).as_text()
    inside = text[: text.index("\nENTRY")]
    assert len(re.findall(r"\n  %\S+ = f32\[128\]\S* fusion\(", inside)) == 4
