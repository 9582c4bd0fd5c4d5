"""attention against its definition, jax.nn and its former self; its kernels interpreted, lowered for CUDA, and in transformations."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.parallel.constrain import layout
from assay.parallel.layout import make_layout
from assay_kernels import H200, ImplementationError, for_target, recording
from assay_kernels.aot import custom_calls, lower_for_cuda, lower_gradient_for_cuda
from assay_kernels.attention import OP, attention, cudnn
from assay_kernels.attention.cases import BIASED, CALLS, CASES, Call, causal
from assay_kernels.attention.plan import order_of, spans
from assay_kernels.attention.reference import MASKED, mask
from assay_kernels.attention.shapes import Options, Sizes
from assay_kernels.testing import check
from assay_plugins.models.attention import attention as of_models
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor


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
        found = jax.jit(lambda q, k, v: OP(q, k, v, *arguments[3:], impl="reference"))(*arguments[:3])
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
    gradients = jax.jit(jax.grad(lambda *x: jnp.sum(attention(*x[:3], bias=x[3])), (0, 1, 2, 3)))(q, k, v, bias)
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


INTERPRETED = ("grouped", "all at once")  # the others run on a GPU


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_kernels_compute_it_in_the_interpreter(name: str) -> None:
    check(OP, "mosaic", CASES[name], interpret=True)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the interpreter of jax 0.10 sees races in part only")
def test_no_memory_is_used_before_it_is_ready() -> None:
    check(OP, "mosaic", CASES["grouped"], interpret=True, races=True)


def test_the_cases_see_a_mask_that_lets_one_key_more_through(monkeypatch) -> None:
    from assay_kernels.attention.mosaic_forward import Scores

    seen = Scores.seen
    wrong = lambda self, q, k, offset, *rest, **options: seen(self, q, k, offset + 1, *rest, **options)
    monkeypatch.setattr(Scores, "seen", wrong)
    with pytest.raises(AssertionError, match=r"attention\.mosaic: output"):
        check(OP, "mosaic", dataclasses.replace(CASES["grouped"], differentiate=()), interpret=True)


@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize("segments", [None, "sorted", "any"])
@pytest.mark.parametrize(("window", "offset"), [(None, 0), (None, 70), (40, 0), (10, -50)])
def test_blocks_are_left_out_and_unmasked_just_where_the_mask_says(
    window: Any, offset: int, segments: Any, of_keys: bool
) -> None:
    sizes, rows, columns = Sizes(2, 100, 150, 1, 1, 8), 16, 32
    rng = np.random.default_rng(0)
    ids = [None, None]
    if segments is not None:
        ids = [jnp.asarray(rng.integers(0, 3, (2, n)), jnp.int32) for n in (100, 150)]
        ids = [jnp.sort(x, axis=1) for x in ids] if segments == "sorted" else ids
    options = Options(causal=True, window=window)
    found = np.asarray(spans(sizes, rows, columns, offset, *ids, options, of_keys=of_keys))
    seen = np.broadcast_to(np.asarray(mask(sizes, offset, *ids, options))[:, 0], (2, 100, 150))
    if of_keys:
        seen, rows, columns = np.swapaxes(seen, 1, 2), columns, rows
    for b, i in np.ndindex(2, -(-seen.shape[1] // rows)):
        first, whole_first, whole_end, end = found[b % found.shape[0], i]
        assert 0 <= first < end <= -(-seen.shape[2] // columns)
        assert first <= whole_first <= whole_end <= end
        strip = seen[b, i * rows : (i + 1) * rows]
        inside = strip[:, first * columns : end * columns]
        assert inside.sum() == strip.sum()
        assert strip[:, whole_first * columns : whole_end * columns].all()
        if segments is None and strip.any():  # and no more than needed
            assert inside[:, :columns].any()
            assert inside[:, -columns:].any() or end * columns >= seen.shape[2]


def test_every_tile_is_worked_on_once() -> None:
    order = order_of(10, 2, 7, 5 << 20, last_first=True)
    assert order.section == 8
    assert {tuple(map(int, order.tile(i))) for i in range(order.tiles)} == {(p, b) for p in range(10) for b in range(7)}
    assert [int(order.tile(i)[1]) for i in range(8)] == [6] * 8


def shapes(head_dim: int = 128, dtype: Any = jnp.bfloat16, tokens: int = 300) -> tuple[Any, Any, Any]:
    q, k = (jax.ShapeDtypeStruct((2, tokens, heads, head_dim), dtype) for heads in (4, 2))
    return q, k, k


def loss(q: Any, k: Any, v: Any) -> Any:
    return jnp.sum(attention(q, k, v, causal=True).astype(jnp.float32) ** 2)


def transformed(how: str) -> Any:
    """`loss` inside one of jax's transformations."""
    if how == "vmap":
        return lambda *x: jnp.sum(jax.vmap(lambda q, k, v: loss(q[None], k[None], v[None]))(*x))
    if how == "scan":
        return lambda *x: jax.lax.scan(lambda c, y: (c + loss(*(z[None] for z in y)), None), 0.0, x)[0]
    return jax.checkpoint(loss) if how == "checkpoint" else loss


@pytest.mark.parametrize("how", ["plain", "vmap", "scan", "checkpoint"])
def test_value_and_gradient_are_lowered_for_cuda(how: str) -> None:
    with recording() as choices:
        value = lower_for_cuda(transformed(how), *shapes())
        gradient = lower_gradient_for_cuda(transformed(how), *shapes())
    assert {c.implementation for c in choices} == {"mosaic"}
    for text in (value, gradient):
        assert "mosaic_gpu_v2" in custom_calls(text)
        assert "attention.mosaic" in text


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        (shapes(dtype=jnp.float32), {}, "takes bfloat16 or float16, not float32"),
        (shapes(head_dim=80), {}, "takes a head_dim of 64, 96, 128, 192, not 80"),
        (shapes(tokens=0), {}, "there is nothing to compute"),
        (shapes(), {"bias": jnp.zeros((1, 1, 1, 300))}, "takes no bias"),
        (shapes(), {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}, "has no dropout"),
    ],
)
def test_what_the_kernels_cannot_do_is_the_references_and_the_choice_says_why(
    arguments: Any, options: Any, reason: str
) -> None:
    call = lambda *x, impl="auto": attention(*x, impl=impl, **options)
    with recording() as choices:
        lower_for_cuda(call, *arguments)
    assert [c.implementation for c in choices] == ["reference"]
    assert reason in dict(choices[0].refused)["mosaic"]
    with for_target(H200), pytest.raises(ImplementationError, match="mosaic cannot do this call"):
        jax.eval_shape(lambda *x: call(*x, impl="mosaic"), *arguments)
    with pytest.raises(ImplementationError, match="needs a Hopper GPU, this is cpu"):
        jax.eval_shape(lambda *x: attention(*x, impl="mosaic"), *shapes())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"options": Options(causal=True, window=5)}, None),
        ({"options": Options(window=5)}, "is not used for a window without causal, where it sees keys to come"),
        ({"options": Options(softcap=5.0)}, "is not used for a soft-cap"),
        ({"options": Options(lse=True)}, "is not used for lse"),
        ({"ids": jnp.zeros((2, 300), jnp.int32)}, "is not used for segments"),
        ({"bias": jnp.zeros((1, 1, 1, 300))}, "is not used for a bias"),
        ({"offset": 3, "options": causal()}, "is not used for"),
        ({"offset": 3, "options": Options(causal=True)}, "is not used for an offset"),
        ({"key": jax.random.key(0)}, "is not used for dropout"),
        ({"arrays": shapes(dtype=jnp.float32)}, "takes bfloat16 or float16"),
        ({"arrays": shapes(head_dim=257)}, "takes a head_dim of at most 256 and a multiple of 8, not 257"),
        (
            {"arrays": (*shapes()[:1], *shapes(tokens=100)[1:]), "options": Options(causal=True)},
            "more queries than keys",
        ),
    ],
)
def test_cudnn_is_taken_only_where_it_is_right(change: dict[str, Any], reason: str | None, monkeypatch) -> None:
    arguments = change.get("arrays", shapes())
    ids, options = change.get("ids"), change.get("options", Options())
    rest = ids, ids, change.get("bias"), change.get("offset", 0), change.get("key"), options
    assert cudnn.supports(H200, *arguments, *rest) == "jax finds no cuDNN in this process"
    monkeypatch.setattr(cudnn.compat, "has_cudnn", lambda: True)
    found = cudnn.supports(H200, *arguments, *rest)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(("tensor", "chosen"), [(2, "mosaic"), (8, "reference")])
def test_models_call_it_on_each_devices_examples_and_heads(tensor: int, chosen: str) -> None:
    placed = make_layout(FSDPTensor(data=1, fsdp=8 // tensor, tensor=tensor), jax.devices()[:8])
    q, k, v = (jax.ShapeDtypeStruct((4, 128, heads, 64), jnp.bfloat16) for heads in (4, 2, 2))
    with layout(placed.sharding), for_target(H200), recording() as choices:
        program = str(jax.make_jaxpr(lambda *x: of_models(*x, causal=True))(q, k, v))
    assert [c.implementation for c in choices] == [chosen]
    assert ("shard_map" in program) == (chosen == "mosaic")
    if chosen == "reference":
        assert "'act_heads' of size 4 cannot be divided over 8 devices" in str(choices[0])
    else:
        assert choices[0].arrays[0] == "bfloat16[1,128,2,64]"
