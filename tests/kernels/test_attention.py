"""attention against its definition, jax.nn and its former self; its kernels interpreted, lowered for CUDA, and in transformations."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay_kernels.attention import OP, attention
from assay_kernels.attention.cases import BIASED, CALLS, CASES, Call, causal
from assay_kernels.attention.reference import MASKED


def drawn(call: Call, dtype: str | None = None, seed: int = 0) -> tuple[Any, ...]:
    """The arguments of a call, perhaps in another dtype."""
    q, k, v, *rest = call.draw(seed)
    return (*(x.astype(dtype or x.dtype) for x in (q, k, v)), *rest)


def by_definition(call: Call, arguments: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) in numpy and float64, one query after the other."""
    q, k, v, q_ids, kv_ids, bias, offset, _, o = arguments
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    q_ids, kv_ids = (None if x is None else np.asarray(x) for x in (q_ids, kv_ids))
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    group = call.heads // call.kv_heads
    full = np.broadcast_to(
        0.0 if bias is None else np.asarray(bias, np.float64), (call.batch, call.heads, call.queries, call.keys)
    )
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = [
            s
            for s in range(call.keys)
            if (not o.causal or s <= t + offset)
            and (o.window is None or s > t + offset - o.window)
            and (q_ids is None or q_ids[b, t] == kv_ids[b, s])
        ]
        if seen:
            scores = k[b, seen, n // group] @ q[b, t, n] * (o.scale or 1 / math.sqrt(call.head_dim))
            scores = scores if o.softcap is None else o.softcap * np.tanh(scores / o.softcap)
            scores = scores + full[b, n, t, seen]
            top = scores.max()
            weights = np.exp(scores - top)
            lse[b, t, n] = top + math.log(weights.sum())
            out[b, t, n] = weights @ v[b, seen, n // group] / weights.sum()
    return out, lse


@pytest.mark.parametrize("name", [*CALLS, *BIASED])
def test_the_specification_is_the_definition(name: str) -> None:
    call = {**CALLS, **BIASED}[name]
    with jax.enable_x64(True):
        arguments = drawn(call, "float64")
        found = OP(*arguments, impl="reference")
    for mine, true in zip(found, by_definition(call, arguments), strict=True):
        np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(true))
        keep = np.isfinite(true)
        np.testing.assert_allclose(np.asarray(mine)[keep], true[keep], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "options"),
    [
        (Call(2, 17, 17, 4, 2, 8), {"is_causal": True}),
        (Call(1, 12, 30, 2, 2, 8), {}),
        (Call(1, 33, 33, 2, 1, 8, options=causal(window=5)), {"is_causal": True, "local_window_size": (4, 0)}),
        (Call(2, 12, 12, 2, 2, 8, bias=(2, 1, 12, 12)), {}),
    ],
)
def test_it_is_jaxs_attention(call: Call, options: dict[str, Any]) -> None:
    q, k, v, _, _, bias, *_ = drawn(call, "float32")
    window = 5 if "local_window_size" in options else None

    def ours(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(attention(q, k, v, causal="is_causal" in options, window=window, bias=bias) ** 2)

    def theirs(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(jax.nn.dot_product_attention(q, k, v, bias, implementation="xla", **options) ** 2)

    (a, da), (b, db) = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for mine, its in zip(da, db, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


def as_before(q: Any, k: Any, v: Any, mask: Any, rate: float, key: Any) -> Any:
    """The operations of models' attention before there was this op, in their order."""
    batch, seq, heads, head_dim = q.shape
    kv_heads, keys = k.shape[2], k.shape[1]
    grouped = (
        q.reshape(batch, seq, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    )
    scores = jnp.einsum("bknd,bskd->bkns", grouped, k, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    scores = scores.reshape(batch, heads, seq, keys)
    scores = scores if mask is None else jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    if key is not None:
        weights = jnp.where(jax.random.bernoulli(key, 1.0 - rate, weights.shape), weights / (1.0 - rate), 0.0).astype(
            v.dtype
        )
    mixed = jnp.einsum("bkns,bskd->bknd", weights.reshape(batch, kv_heads, -1, keys), v)
    return mixed.reshape(batch, kv_heads, -1, seq, head_dim).transpose(0, 3, 1, 2, 4).reshape(q.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["full", "causal", "window", "segments", "dropout"])
def test_training_on_the_cpu_keeps_its_bits(kind: str, dtype: str) -> None:
    q, k, v, *_ = drawn(Call(2, 33, 33, 4, 2, 16), dtype)
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (1, 1, 33, 33), axis) for axis in (2, 3))
    ids = jnp.asarray([[0] * 10 + [1] * 23, [4] * 33])
    masks = {
        "full": None,
        "causal": columns <= rows,
        "window": (columns <= rows) & (columns > rows - 7),
        "segments": (columns <= rows) & (ids[:, :, None] == ids[:, None, :])[:, None],
        "dropout": columns <= rows,
    }
    key = jax.random.key(3) if kind == "dropout" else None
    options = {
        "causal": kind != "full",
        "window": 7 if kind == "window" else None,
        "dropout_rate": 0.3,
        "dropout_key": key,
    }

    def ours(q: Any, k: Any, v: Any) -> Any:
        out = attention(q, k, v, q_segment_ids=ids if kind == "segments" else None, impl="reference", **options)
        return jnp.sum(out.astype(jnp.float32) ** 2), out

    def before(q: Any, k: Any, v: Any) -> Any:
        out = as_before(q, k, v, masks[kind], 0.3, key)
        return jnp.sum(out.astype(jnp.float32) ** 2), out

    found, expected = (jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(q, k, v) for f in (ours, before))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_traced_offset_is_as_good_as_a_number() -> None:
    q, k, v, *_ = drawn(CALLS["offset"], "float32")
    call = lambda offset: attention(q, k, v, causal=True, window=40, offset=offset)
    np.testing.assert_allclose(jax.jit(call)(jnp.int32(101)), call(101), rtol=1e-5, atol=1e-6)
    assert not np.any(jax.jit(call)(jnp.int32(-40)))


def test_a_bias_of_minus_infinity_hides_a_key_and_a_row_of_them_everything() -> None:
    q, k, v, *_ = drawn(Call(1, 3, 4, 1, 1, 8), "float32")
    bias = jnp.zeros((1, 1, 3, 4)).at[..., 0, 2:].set(-jnp.inf).at[..., 1, :].set(-jnp.inf)
    out, lse = attention(q, k, v, bias=bias, return_lse=True)
    np.testing.assert_allclose(out[:, 0], attention(q[:, :1], k[:, :2], v[:, :2])[:, 0], rtol=1e-5)
    assert not np.any(out[:, 1])
    assert lse[0, 1, 0] == -np.inf
    gradients = jax.grad(lambda *x: jnp.sum(attention(*x[:3], bias=x[3])), (0, 1, 2, 3))(q, k, v, bias)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int, int]) -> None:
    batch, queries, keys = shape
    q, k = jnp.ones((batch, queries, 2, 8)), jnp.ones((batch, keys, 2, 8))
    out, lse = attention(q, k, k, return_lse=True)
    assert out.shape == q.shape
    assert not np.any(out)
    assert np.all(np.asarray(lse) == -np.inf)


ARRAY = jnp.ones((1, 4, 2, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": jnp.ones((1, 4, 2, 8), jnp.bfloat16)}, "q is float32, k bfloat16 and v float32: they must have one"),
        ({"q": jnp.ones((1, 4, 2, 8), jnp.int32)}, "q is int32"),
        ({"v": jnp.ones((1, 5, 2, 8))}, r"q \(1, 4, 2, 8\), k \(1, 4, 2, 8\) and v \(1, 5, 2, 8\): must be"),
        ({"q": jnp.ones((1, 4, 3, 8))}, "3 query heads cannot share 2 key heads evenly"),
        ({"kv_segment_ids": jnp.ones((1, 4), jnp.int32)}, "kv_segment_ids without q_segment_ids"),
        ({"q_segment_ids": jnp.ones((1, 4))}, "q_segment_ids are float32: must be integers"),
        (
            {"q_segment_ids": jnp.ones((1, 3), jnp.int32)},
            r"q_segment_ids \(1, 3\): must be one for each token, \(1, 4\)",
        ),
        ({"bias": jnp.ones((4, 4))}, r"bias \(4, 4\): must have four dimensions that broadcast to \(B, N, T, S\)"),
        ({"bias": jnp.ones((1, 1, 4, 4), bool)}, "bias is bool: must be floating point"),
        ({"window": 3}, "a window without causal"),
        ({"causal": True, "window": 0}, "window = 0: must be at least 1"),
        ({"offset": jnp.ones(2, jnp.int32)}, r"offset is int32\[2\]: must be one integer"),
        ({"scale": 0.0}, "scale = 0.0: must be greater than 0"),
        ({"softcap": -1.0}, "softcap = -1.0: must be greater than 0"),
        (
            {"dropout_rate": 1.0, "dropout_key": jax.random.key(0)},
            "dropout_rate = 1.0: must be at least 0 and less than 1",
        ),
        ({"impl": "fast"}, "attention has no implementation 'fast'"),
    ],
)
def test_bad_arguments_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        attention(**{"q": ARRAY, "k": ARRAY, "v": ARRAY, **change})


def test_every_case_is_as_exact_in_its_own_dtype_as_the_ceiling_asks() -> None:
    from assay_kernels.testing import check

    for case in CASES.values():
        check(OP, "reference", case)
