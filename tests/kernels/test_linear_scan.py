"""linear_scan against its recurrence in float64 and a library's convolution, at the edges of chunks and runs, inside transformations."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from assay_kernels import H200, ImplementationError, audit, disagreements, for_target, mosaic, recording
from assay_kernels.aot import custom_calls, lower_for_cuda, lower_gradient_for_cuda
from assay_kernels.linear_scan import OP, bench, linear_scan, reference, step
from assay_kernels.linear_scan import mosaic as kernel
from assay_kernels.linear_scan.cases import CALLS, CASES, KERNEL, Call
from assay_kernels.testing import check, is_floating


def recurrence(x: Any, log_decay: Any, b: Any, c: Any, runs: Any, state: Any) -> tuple[jax.Array, jax.Array]:
    """The definition, position by position."""
    if state is None:
        state = jnp.zeros((x.shape[0], *x.shape[2:], b.shape[3]), x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        if t and runs is not None:
            state = jnp.where((runs[:, t] == runs[:, t - 1])[:, None, None, None], state, 0)
        y, state = step(x[:, t], log_decay[:, t], b[:, t], c[:, t], state)
        outputs.append(y)
    return jnp.stack(outputs, axis=1), state


@pytest.mark.parametrize("name", CALLS)
def test_in_float64_chunks_are_the_recurrence(name: str) -> None:
    check_exact(name)


def check_exact(name: str) -> None:
    *arrays, options = CALLS[name].draw(0)
    with jax.enable_x64(True):
        wide = [jnp.asarray(v, "float64") if is_floating(v) else v for v in arrays]
        found = jax.jit(lambda *v: linear_scan(*v[:4], runs=v[4], state=v[5], chunk=options.chunk))(*wide)
        expected = jax.jit(recurrence)(*wide)
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["runs", "primes", "strong decay", "bf16"])
def test_it_is_as_exact_as_its_dtype(name: str) -> None:
    check(OP, "reference", CASES[name])


def check_kernel(name: str, races: bool = False) -> None:
    """Of values: gradients are those of the chunks."""
    check(OP, "mosaic", dataclasses.replace(CASES[name], differentiate=()), interpret=True, races=races)


@pytest.mark.parametrize("name", KERNEL)
def test_the_kernel_is_as_exact_as_the_recurrence(name: str) -> None:
    check_kernel(name)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="jax 0.10's interpreter sees only a part of the races")
def test_nothing_is_used_that_a_copy_may_still_write_or_read() -> None:
    check_kernel("runs and state", races=True)


def test_the_kernels_gradient_is_that_of_the_chunks() -> None:
    arguments = CALLS["bf16"].draw(0)
    x, log_decay, b, c = (jnp.tile(v, (1,) * (v.ndim - 1) + (8,)) if v.ndim == 4 else v for v in arguments[:4])
    plan = kernel.Plan(arguments[-1], kernel.Config(2))
    state = jnp.zeros((2, 2, 64, 128), jnp.float32)
    call = lambda scan, *arrays: jnp.sum(jnp.sin(scan(*arrays)[0].astype(jnp.float32)))
    ours = jax.jit(jax.grad(lambda x: call(lambda x: kernel.scan(x, log_decay, b, c, None, state, plan), x)))(x)
    theirs = jax.jit(jax.grad(lambda x: call(lambda x: linear_scan(x, log_decay, b, c, chunk=16), x)))(x)
    np.testing.assert_array_equal(ours, theirs)


def test_the_kernel_refuses_in_words() -> None:
    good = KERNEL["wide state"]
    if not mosaic.LAYOUTS_ARE_FOUND:
        with for_target(H200), pytest.raises(ImplementationError, match="does not come to an end in its search"):
            OP(*good.draw(0), impl="mosaic")
    for change, reason in {
        "float32": (dataclasses.replace(good, dtype="float32"), "x is float32: must be bfloat16 or float16"),
        "positions": (dataclasses.replace(good, seq=63), "63 positions are no multiple of 8"),
        "widths": (dataclasses.replace(good, head_dim=128), "head_dim 128 and state 128: must be 64 and 64, "),
    }.values():
        with for_target(H200), pytest.raises(ImplementationError, match=reason):
            OP(*change.draw(0), impl="mosaic")


def test_it_is_scipys_filter_where_nothing_changes_with_time() -> None:
    """A constant decay, b and c make y_t = c b (a y_{t-1} + x_t), a filter with one pole."""
    x = np.random.default_rng(0).normal(size=50)
    expected = 0.5 * 0.7 * scipy.signal.lfilter([1.0], [1.0, -0.8], x)
    full = lambda value: jnp.full((1, 50, 1, 1), value)
    y, last = linear_scan(
        jnp.asarray(x, jnp.float32).reshape(1, 50, 1, 1),
        jnp.full((1, 50, 1), np.log(0.8), jnp.float32),
        full(0.5),
        full(0.7),
        chunk=16,
    )
    np.testing.assert_allclose(y[0, :, 0, 0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last[0, 0, 0, 0] * 0.7, expected[-1], rtol=1e-5)


def test_what_lies_before_a_run_does_not_reach_it() -> None:
    x, log_decay, b, c, *_ = Call(seq=40, batch=1).draw(0)
    runs = jnp.asarray([[0] * 23 + [1] * 17])
    poisoned = [v.at[:, :23].set(1e15) for v in (x, b, c)]
    scan = jax.jit(functools.partial(linear_scan, chunk=16))
    y, last = scan(poisoned[0], log_decay, *poisoned[1:], runs=runs)
    alone, after = scan(*(v[:, 23:] for v in (x, log_decay, b, c)))
    np.testing.assert_allclose(y[:, 23:], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, after, rtol=1e-5, atol=1e-6)


def test_inside_vmap_scan_and_remat() -> None:
    draws = [Call(seq=20).draw(seed)[:4] for seed in (0, 1)]
    one = lambda arrays: jnp.sum(jnp.sin(linear_scan(*arrays, chunk=8)[0]))
    gradients = jax.jit(jax.grad(one))
    several = jax.tree.map(lambda *v: jnp.stack(v), *draws)
    expected = jax.tree.map(lambda *v: jnp.stack(v), *map(gradients, draws))
    ways = {
        "vmap": jax.vmap(gradients),
        "scan": lambda many: jax.lax.scan(lambda _, arrays: (None, gradients(arrays)), None, many)[1],
        "remat": jax.vmap(jax.grad(jax.checkpoint(one))),
    }
    for way in ways.values():
        found = jax.jit(way)(several)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_batch_and_heads_divided_over_two_devices() -> None:
    x, log_decay, b, c, *_ = Call(seq=20, heads=4).draw(0)
    for name, heads in (("data", None), (None, "heads")):
        mesh = Mesh(np.asarray(jax.devices()[:2]), ("data" if name else "heads",))
        shared = P(name)
        divided = jax.shard_map(
            functools.partial(linear_scan, chunk=8),
            mesh=mesh,
            in_specs=(P(name, None, heads), P(name, None, heads), shared, shared),
            out_specs=(P(name, None, heads), P(name, heads)),
            check_vma=False,
        )
        found, expected = jax.jit(divided)(x, log_decay, b, c), linear_scan(x, log_decay, b, c, chunk=8)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="refused there: jax does not find the kernel's layouts")
def test_value_and_gradient_are_lowered_for_cuda() -> None:
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in KERNEL["wide state"].draw(0)[:4]]

    def loss(*arrays: Any) -> jax.Array:
        y, last = linear_scan(*arrays, chunk=16)
        return jnp.sum(y.astype(jnp.float32)) + jnp.sum(last)

    with recording() as choices:
        texts = lower_for_cuda(loss, *shapes), lower_gradient_for_cuda(loss, *shapes)
    assert {(c.implementation, c.target, c.configs[0].source) for c in choices} == {("mosaic", H200, "rule")}
    assert ["mosaic_gpu_v2" in custom_calls(text) for text in texts] == [True, False]
    several = [jax.ShapeDtypeStruct((3, *v.shape), v.dtype) for v in shapes]
    assert "mosaic_gpu_v2" in custom_calls(lower_for_cuda(jax.vmap(loss), *several))


def test_the_record_and_the_compiled_gradient_agree() -> None:
    arrays = Call(seq=20).draw(0)[:4]
    with recording() as choices:
        compiled = jax.jit(jax.grad(lambda *a: jnp.sum(linear_scan(*a, chunk=8)[0]))).lower(*arrays).compile()
    assert [c.implementation for c in choices] == ["reference"]
    assert disagreements(choices, audit(compiled)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((2, 4, 2, 3), jnp.int32)}, "x is int32, b float32 and c float32: must have one floating"),
        ({"x": jnp.ones((2, 4, 6))}, r"x \(2, 4, 6\): must be \(batch, seq, heads, head_dim\)"),
        ({"log_decay": jnp.ones((2, 4))}, r"log_decay is float32\[2, 4\]: must be float32\[2, 4, 2\]"),
        ({"log_decay": jnp.ones((2, 4, 2), jnp.bfloat16)}, "log_decay is bfloat16"),
        ({"b": jnp.ones((2, 4, 3, 5)), "c": jnp.ones((2, 4, 3, 5))}, r"must be \(2, 4, a divisor of 2, state\), both"),
        ({"runs": jnp.zeros((2, 4))}, r"runs are float32\[2, 4\]: must be integers \[2, 4\]"),
        ({"state": jnp.zeros((2, 2, 5, 3))}, r"state \(2, 2, 5, 3\): must be \(2, 2, 3, 5\)"),
        ({"chunk": 0}, "chunk = 0: must be at least 1"),
    ],
)
def test_bad_inputs_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    shared = jnp.ones((2, 4, 1, 5))
    given = {"x": jnp.ones((2, 4, 2, 3)), "log_decay": jnp.zeros((2, 4, 2)), "b": shared, "c": shared, **change}
    with for_target(H200), pytest.raises((TypeError, ValueError), match=message):
        linear_scan(**given)


def test_what_is_benchmarked_runs() -> None:
    small = bench.SHAPES["small"]
    for call in bench.contenders(small).values():
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(jax.jit(call)(*small.arguments())))


MUTATIONS = {
    "a position sees its whole chunk": (
        "_reach",
        lambda chunk, runs: jnp.ones((1,) * 4 + (chunk, chunk), bool),
        "runs",
    ),
    "a run goes on from the chunk before": ("_goes_on", lambda runs: jnp.ones(runs.shape, bool), "runs"),
    "the state is not decayed": (
        "_at_ends",
        lambda *a: (jnp.ones_like(at_ends(*a)[0]), at_ends(*a)[1]),
        "a chunk and one",
    ),
}
at_ends = reference._at_ends


@pytest.mark.parametrize("name", MUTATIONS)
def test_these_tests_see_a_fault(name: str, monkeypatch) -> None:
    attribute, wrong, case = MUTATIONS[name]
    monkeypatch.setattr(reference, attribute, wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_exact(case)


KERNEL_MUTATIONS = {
    "a position sees those of an earlier run": ("first", lambda first: jnp.zeros_like(first)),
    "the decays are in the wrong base": ("passed", lambda passed: passed * 0.7),
    "the state goes on into the next run": ("before", lambda before: jnp.ones_like(before)),
}


@pytest.mark.parametrize("name", KERNEL_MUTATIONS)
def test_these_tests_see_a_fault_of_the_kernel(name: str, monkeypatch) -> None:
    which, wrong = KERNEL_MUTATIONS[name]
    decays = kernel._decays

    def changed(*arguments: Any) -> tuple[jax.Array, ...]:
        found = dict(zip(("passed", "before", "end", "first"), decays(*arguments), strict=True))
        return tuple({**found, which: wrong(found[which])}.values())

    monkeypatch.setattr(kernel, "_decays", changed)
    with pytest.raises(AssertionError, match="is off by"):
        check_kernel("runs and state")
