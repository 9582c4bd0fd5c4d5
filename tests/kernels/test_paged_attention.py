"""paged_attention against float64 and jax.nn, its kernel in the interpreter, and what is around both."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from assay_kernels import H200, ImplementationError, audit, disagreements, for_target, recording
from assay_kernels.aot import custom_calls, lower_for_cuda
from assay_kernels.paged_attention import OP, Options, mosaic, paged_attention
from assay_kernels.paged_attention.cases import CASES, Cache
from assay_kernels.testing import Case, check, errors, exact

INTERPRETED = ("decode", "fewer new tokens", "prefill, window, softcap")  # the others run on a GPU


@pytest.fixture(autouse=True)
def one_multiprocessor(monkeypatch) -> None:
    """One thread block does all items, in a pipeline so short that every stage is used again; little is interpreted."""
    monkeypatch.setattr(mosaic, "current_target", lambda: dataclasses.replace(H200, cores=1))
    monkeypatch.setattr(mosaic, "rule", lambda *a: dataclasses.replace(rule(*a), block=64, stages=2))


rule = mosaic.rule


@pytest.mark.parametrize("name", CASES)
def test_the_specification_is_exact_in_float64(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(0)
    (out, lse), _ = exact(OP, case, arguments)
    true_out, true_lse = by_definition(*arguments)
    assert max(errors((out, lse), (true_out, true_lse))) < 1e-12


def by_definition(
    q: Any, k_pages: Any, v_pages: Any, page_table: Any, lengths: Any, q_lengths: Any, options: Options
) -> tuple[Any, Any]:
    """Query by query, head by head, slot by slot, in numpy's float64."""
    q, k_pages, v_pages = (np.asarray(x, np.float64) for x in (q, k_pages, v_pages))
    table, size, group = np.asarray(page_table), k_pages.shape[2], q.shape[2] // k_pages.shape[1]
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    for b, length in enumerate(np.asarray(lengths)):
        new = q.shape[1] if q_lengths is None else int(q_lengths[b])
        for t in range(new):
            at = int(length) - new + t
            slots = np.arange(max(0, at + 1 - (options.window or length + 1)), max(at + 1, 0))
            for n in range(q.shape[2] if len(slots) else 0):
                k, v = (x[table[b, slots // size], n // group, slots % size] for x in (k_pages, v_pages))
                logits = k @ q[b, t, n] * options.scale
                logits = logits if options.softcap is None else options.softcap * np.tanh(logits / options.softcap)
                weights = np.exp(logits - logits.max())
                out[b, t, n] = weights @ v / weights.sum()
                lse[b, t, n] = logits.max() + np.log(weights.sum())
    return out, lse


def test_it_is_jaxs_attention_where_the_cache_is_one_whole_sequence() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 32, heads, 16)), jnp.float32) for heads in (4, 2, 2))
    pages = [jnp.swapaxes(x.reshape(4, 16, 2, 16), 1, 2) for x in (k, v)]
    table, lengths = jnp.asarray([[0, 1], [2, 3]], jnp.int32), jnp.full(2, 32, jnp.int32)
    for window in (None, 5):
        ours = paged_attention(q, *pages, table, lengths, window=window)
        local = None if window is None else (window - 1, 0)
        theirs = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=local)
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_kernel_is_as_exact_as_the_specification(name: str) -> None:
    check(OP, "mosaic", CASES[name], interpret=True)


def test_the_kernel_has_no_race() -> None:
    if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 11):
        print("jax 0.10 sees a part of the races only")
    check(OP, "mosaic", Case(Cache((260, 0), heads=(2, 1))), interpret=True, races=True)


def test_it_is_lowered_for_cuda_alone_and_inside_transformations() -> None:
    arrays = [x for x in CASES["decode"].draw(0) if isinstance(x, jax.Array)]
    call = functools.partial(paged_attention, impl="mosaic")
    several = [jnp.stack([x, x]) for x in arrays]
    ways = {
        "alone": (call, arrays),
        "vmap": (jax.vmap(call), several),
        "scan": (lambda *a: jax.lax.scan(lambda _, x: (None, call(*x)), None, a)[1], several),
        "checkpoint": (jax.checkpoint(call), arrays),
    }
    for name, (function, arguments) in ways.items():
        assert custom_calls(lower_for_cuda(function, *arguments)) == ["mosaic_gpu_v2"], name


def test_rows_divided_over_two_devices() -> None:
    case = CASES["decode"]
    q, k_pages, v_pages, table, lengths, _, _ = case.draw(0)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("rows",))
    specs = {"in_specs": (P("rows"), P(), P(), P("rows"), P("rows")), "out_specs": P("rows"), "check_vma": False}
    divided = jax.jit(jax.shard_map(functools.partial(paged_attention, impl="reference"), mesh=mesh, **specs))
    found, alone = (np.asarray(f(q, k_pages, v_pages, table, lengths), np.float32) for f in (divided, paged_attention))
    np.testing.assert_allclose(found, alone, rtol=1e-2, atol=1e-3)  # as far as bfloat16 rounds another order of sums


def test_inside_vmap_and_scan_on_this_device() -> None:
    draws = [CASES["several tokens"].draw(seed)[:5] for seed in (0, 1)]
    shared = min(d[1].shape[0] for d in draws)
    assert all(d[1].shape[0] == shared for d in draws)
    several = [jnp.stack(x) for x in zip(*draws, strict=True)]
    alone = np.stack([np.asarray(paged_attention(*d), np.float32) for d in draws])
    mapped = jax.jit(jax.vmap(paged_attention))(*several)
    scanned = jax.jit(lambda *a: jax.lax.scan(lambda _, x: (None, paged_attention(*x)), None, a)[1])(*several)
    for found in (mapped, scanned):
        np.testing.assert_allclose(np.asarray(found, np.float32), alone, rtol=1e-2)


@pytest.mark.parametrize("impl", ["reference", "mosaic"])
def test_a_derivative_is_refused_in_one_sentence(impl: str) -> None:
    q, *rest = [x for x in CASES["one row"].draw(0) if isinstance(x, jax.Array)]
    loss = lambda q: jnp.sum(paged_attention(q, *rest, impl=impl).astype(jnp.float32))
    with for_target(H200), pytest.raises(NotImplementedError, match="paged_attention has no derivative"):
        jax.grad(loss)(q)
    assert jax.grad(lambda q: paged_attention(jax.lax.stop_gradient(q), *rest).sum().astype(jnp.float32))(q).sum() == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "multiplies bf16 and fp16 on the tensor cores, these are float32"),
        ({"head_dim": 96}, r"head dimension 96 is none of \(64, 128, 256\)"),
        ({"page_size": 8}, r"pages of 8 slots are none of \(16, 32, 64, 128\)"),
    ],
)
def test_the_kernel_says_why_not(change: dict[str, Any], reason: str) -> None:
    arguments = Cache((9,), **change)(0)
    with for_target(H200), pytest.raises(ImplementationError, match=reason):
        OP(*arguments, impl="mosaic")
    with for_target(H200), recording() as choices:
        jax.eval_shape(lambda *a: OP(*a, *arguments[5:]), *arguments[:5])
    assert choices[0].implementation == "reference"
    assert choices[0].refused[0][0] == "mosaic"


def test_a_cpu_has_no_kernel_and_the_record_says_so() -> None:
    arguments = CASES["one row"].draw(0)
    with pytest.raises(ImplementationError, match="needs a Hopper GPU, this is cpu"):
        OP(*arguments, impl="mosaic")
    with recording() as choices:
        program = jax.jit(lambda *a: OP(*a, *arguments[5:])).lower(*arguments[:5]).compile()
    assert [c.implementation for c in choices] == ["reference"]
    assert disagreements(choices, audit(program)) == []


def test_the_record_names_the_configuration() -> None:
    arguments = CASES["decode"].draw(0)
    with for_target(H200), recording() as choices:
        jax.eval_shape(lambda *a: OP(*a, *arguments[5:]), *arguments[:5])
    assert choices[0].implementation == "mosaic"
    assert "splits=" in choices[0].configs[0].config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.ones((2, 1, 4, 16), jnp.int32)}, "q is int32"),
        ({"k_pages": jnp.ones((4, 2, 16, 16), jnp.bfloat16)}, "k_pages bfloat16"),
        ({"scale": 0.0}, "scale = 0.0: must be greater than 0"),
        ({"q": jnp.ones((2, 4, 16))}, "must be"),
        ({"q": jnp.ones((2, 1, 4, 8))}, "the head dimensions differ"),
        ({"q": jnp.ones((2, 1, 5, 16))}, "5 query heads must be a positive multiple of 2"),
        ({"page_table": jnp.zeros((3, 2), jnp.int32)}, r"page_table is int32 \(3, 2\): must be int32 \(2, pages"),
        ({"lengths": jnp.zeros(2)}, r"lengths is float32 \(2,\): must be int32"),
        ({"q_lengths": jnp.zeros(3, jnp.int32)}, r"q_lengths is int32 \(3,\)"),
        ({"window": 0}, "window = 0: must be at least 1"),
        ({"softcap": 0.0}, "softcap = 0.0: must be greater than 0"),
    ],
)
def test_bad_inputs_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    arguments = {
        "q": jnp.ones((2, 1, 4, 16)),
        "k_pages": jnp.ones((4, 2, 16, 16)),
        "v_pages": jnp.ones((4, 2, 16, 16)),
        "page_table": jnp.zeros((2, 2), jnp.int32),
        "lengths": jnp.ones(2, jnp.int32),
        **change,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        paged_attention(**arguments)


def test_splits_leave_no_multiprocessor_idle_for_long() -> None:
    for heads, slots in ((256, 8192), (8, 131072), (1, 131072), (300, 4096)):
        config = rule(4, heads, slots, 128, H200)
        steps = -(-slots // config.block)
        waves = -(-heads * config.splits // 132)
        longest = waves * -(-steps // config.splits)
        assert longest <= 1.15 * heads * steps / 132 + 2


def without_seen(plan: Any, item: Any, warpgroup: Any) -> Any:
    return row_ends(plan, item, warpgroup) + 1


row_ends = mosaic._row_ends
MUTATIONS = {
    "a slot after the last is seen": ("_row_ends", without_seen),
    "what no row sees is not zeroed": ("_zero_unseen", lambda *a: None),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_these_tests_see_a_fault(name: str, monkeypatch) -> None:
    monkeypatch.setattr(mosaic, *MUTATIONS[name])
    with pytest.raises(AssertionError):
        check(OP, "mosaic", Case(Cache((70,), heads=(2, 1))), interpret=True)
