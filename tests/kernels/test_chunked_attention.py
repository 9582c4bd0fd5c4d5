"""kernel.chunked_attention: the conformance kit, with chunks that do not divide the queries, and the memory that it is for."""

import jax
import jax.numpy as jnp
import pytest

from assay.testing import KernelKit
from assay_kernels import recording, using
from assay_kernels.attention import attention
from assay_plugins.kernels.chunked_attention import ChunkedAttention

CASES = "window", "rows that see nothing", "segments", "soft-cap", "bias"


class TestKit(KernelKit):
    def plugin(self) -> ChunkedAttention:
        return ChunkedAttention(chunk=17)

    def cases(self):
        cases = super().cases()
        return {name: cases[name] for name in CASES}


class TestOneByOne(KernelKit):
    def plugin(self) -> ChunkedAttention:
        return ChunkedAttention(chunk=1)

    def cases(self):
        cases = super().cases()
        return {"bias for all rows": cases["bias for all rows"]}


def temp(chunk: int, tokens: int) -> int:
    q = jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)
    loss = lambda q, k, v: jnp.sum(attention(q, k, v, causal=True) ** 2)
    with using(ChunkedAttention(chunk=chunk)):
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_chunk() -> None:
    whole, chunked = temp(2048, 2048), temp(128, 2048)
    assert whole > 2 * 2048 * 2048 * 4  # fp32 scores of two heads
    assert chunked < whole / 8


def test_it_leaves_short_rows_and_dropout_to_the_reference() -> None:
    q = jnp.ones((1, 30, 1, 4))
    with using(ChunkedAttention(chunk=16)), recording() as choices:
        attention(q, q, q)
        attention(jnp.ones((1, 32, 1, 4)), q, q)
        attention(jnp.ones((1, 32, 1, 4)), q, q, dropout_rate=0.5, dropout_key=jax.random.key(0))
    assert [c.implementation for c in choices] == ["reference", "chunked", "reference"]
    assert "30 queries are fewer than two chunks of 16" in str(choices[0])
    assert "dropout draws for all queries at once" in str(choices[2])


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk = 0: must be at least 1"):
        ChunkedAttention(chunk=0)
