"""grouped_matmul against float64, a dense oracle and jax's ragged_dot; its kernels in the interpreter; faults that these tests see."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from assay_kernels import H200, ImplementationError, for_target, recording, testing
from assay_kernels.aot import custom_calls, lower_for_cuda, lower_gradient_for_cuda
from assay_kernels.grouped_matmul import OP, Options, configs, grouped_matmul, schedule
from assay_kernels.grouped_matmul import mosaic as kernels
from assay_kernels.grouped_matmul.cases import CASES, case

ODD = ("float32", "float32, transposed", "odd sizes", "one by one")
BLOCKED = ("boundaries inside blocks", "poison after the groups", "all groups empty", "one row", "float16", *ODD)
INTERPRETED = ("boundaries inside blocks", "transposed, in float32", "poison after the groups")
SIZES = (3, 0, 5, 1)


@pytest.fixture
def two_cores(monkeypatch) -> None:
    """A persistent kernel in two blocks, so that each computes several tiles, and the interpreter few blocks."""
    monkeypatch.setattr(kernels, "cores", lambda: 2)


def drawn(dtype: str = "float32", transpose_w: bool = False) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(12, 6)), rng.normal(size=(4, 5, 6) if transpose_w else (4, 6, 5))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(SIZES, jnp.int32)


def dense(x: Any, w: Any) -> Any:
    """By a matrix that says which row is whose."""
    whose = np.repeat(np.arange(5), (*SIZES, 12 - sum(SIZES)))
    return jnp.einsum("mk,gkn,mg->mn", x, w, jnp.asarray(np.eye(5)[whose][:, :4], x.dtype))


def ours_of(sizes: Any, transpose_w: bool, impl: str, x: Any, w: Any) -> Any:
    return grouped_matmul(x, w, sizes, transpose_w=transpose_w, impl=impl)


@pytest.mark.parametrize("transpose_w", [False, True])
def test_the_reference_is_exact_in_float64(transpose_w: bool) -> None:
    with jax.enable_x64(True):
        x, w, sizes = drawn("float64", transpose_w)
        g = jnp.asarray(np.random.default_rng(1).normal(size=(12, 5)))
        turned = (lambda w: w.swapaxes(1, 2)) if transpose_w else (lambda w: w)
        true, back = jax.vjp(lambda x, w: dense(x, turned(w)), x, w)
        ragged, ragged_back = jax.vjp(lambda x, w: jax.lax.ragged_dot(x, turned(w), sizes), x, w)
        for impl in ("reference", "blocked"):
            found, ours = jax.vjp(functools.partial(ours_of, sizes, transpose_w, impl), x, w)
            for ours_or_theirs, exact in ((found, true), (ragged, true), *zip(ours(g), back(g), strict=True)):
                np.testing.assert_allclose(ours_or_theirs, exact, rtol=1e-13, atol=1e-13)
            for ours_or_theirs, theirs in zip(ours(g), ragged_back(g), strict=True):
                np.testing.assert_allclose(ours_or_theirs, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("impl", ["reference", "blocked"])
def test_what_is_nobodys_is_exactly_zero(impl: str) -> None:
    x, w, sizes = drawn()
    x = x.at[sum(SIZES) :].set(jnp.nan)
    out, back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, impl=impl), x, w)
    dx, dw = back(jnp.ones_like(out).at[sum(SIZES) :].set(jnp.nan))
    assert not np.any(out[sum(SIZES) :])
    assert not np.any(dx[sum(SIZES) :])
    assert not np.any(dw[1])
    assert all(np.isfinite(v).all() for v in (out, dx, dw))


@pytest.mark.parametrize("name", BLOCKED)
def test_the_blocked_way_passes_the_kit(name: str) -> None:
    testing.check(OP, "blocked", CASES[name])


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_kernels_pass_the_kit(name: str, two_cores) -> None:
    testing.check(OP, "mosaic", CASES[name], interpret=True)


def test_the_kernels_do_not_race(two_cores) -> None:
    if jax.__version_info__ < (0, 11):
        pytest.skip("jax 0.10's interpreter does not see all races")
    testing.check(OP, "mosaic", CASES["primes"], interpret=True, races=True)


def test_many_groups_with_small_ones_among_them(two_cores, monkeypatch) -> None:
    """Group boundaries at every place of an 8-row granule, and 64 columns, for which one warpgroup computes a tile."""
    sizes = (1, 2, 9, 17, 0, 3, 70, 5)
    testing.check(OP, "mosaic", case(sizes, sum(sizes) + 3, width=64, columns=64), interpret=True)


@pytest.mark.parametrize("sizes", [(128, 128), (127, 2, 300), (0, 0), (5, 0, 640), (1,) * 40])
def test_each_row_is_in_one_tile_of_its_group(sizes: tuple[int, ...]) -> None:
    rows = 648
    ends = np.cumsum(sizes).astype(np.int32)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    table = np.asarray(jax.jit(schedule.row_tiles, static_argnums=2)(starts, ends, rows))
    seen = np.full(rows, -1)
    assert table[-1, 0] <= len(table) - 1
    for group, first, low, high in table[: table[-1, 0]]:
        assert first % 8 == 0
        assert 0 <= first <= low < high <= first + 128 <= rows + 127
        assert first + 128 <= rows
        assert np.all(seen[low:high] == -1)
        seen[low:high] = group
    np.testing.assert_array_equal(seen, np.repeat(np.arange(len(sizes) + 1), (*sizes, rows - sum(sizes))))


@pytest.mark.parametrize(("down", "across", "together"), [(1, 1, 16), (7, 3, 2), (5, 4, 16), (33, 2, 16)])
def test_each_tile_has_its_place(down: int, across: int, together: int) -> None:
    index = jnp.arange(down * across)
    rows, columns = schedule.place(index, down, across, together)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (r, c) for r in range(down) for c in range(across)
    ]


def shapes(dtype: str = "bfloat16", transpose_w: bool = False) -> tuple[Any, ...]:
    w = (8, 512, 256) if transpose_w else (8, 256, 512)
    parts = ((1000, 256), dtype), (w, dtype), ((8,), "int32")
    return tuple(jax.ShapeDtypeStruct(*part) for part in parts)


@pytest.mark.parametrize("impl", ["mosaic", "blocked"])
@pytest.mark.parametrize("transpose_w", [False, True])
def test_value_and_gradient_are_lowered_for_cuda(impl: str, transpose_w: bool) -> None:
    loss = lambda x, w, sizes: jnp.sum(
        grouped_matmul(x, w, sizes, transpose_w=transpose_w, impl=impl).astype(jnp.float32) ** 2
    )
    for lower in (lower_for_cuda, lower_gradient_for_cuda):
        text = lower(loss, *shapes(transpose_w=transpose_w))
        assert f'assay_kernel = "grouped_matmul.{impl}"' in text
        assert ("mosaic_gpu_v2" in custom_calls(text)) == (impl == "mosaic")


@pytest.mark.parametrize("around", ["vmap", "scan", "remat"])
def test_the_kernels_are_lowered_inside_transformations(around: str) -> None:
    one = lambda x, w, sizes: grouped_matmul(x, w, sizes, impl="mosaic")
    several = [jax.ShapeDtypeStruct((2, *s.shape), s.dtype) for s in shapes()]
    ways = {
        "vmap": (jax.vmap(one), several),
        "scan": (lambda *args: jax.lax.scan(lambda _, a: (None, one(*a)), None, args)[1], several),
        "remat": (jax.checkpoint(one), shapes()),
    }
    f, arguments = ways[around]
    text = lower_gradient_for_cuda(lambda *args: jnp.sum(f(*args).astype(jnp.float32)), *arguments)
    assert "mosaic_gpu_v2" in custom_calls(text)


@pytest.mark.parametrize("impl", ["reference", "blocked"])
def test_inside_vmap_scan_and_remat(impl: str) -> None:
    x, w, sizes = drawn()
    one = lambda x, w, sizes: jax.value_and_grad(
        lambda x, w: jnp.sum(grouped_matmul(x, w, sizes, impl=impl) ** 2), (0, 1)
    )(x, w)
    pairs = jnp.stack([x, 2 * x]), jnp.stack([w, -w]), jnp.stack([sizes, sizes[::-1]])
    expected = [one(*(v[i] for v in pairs)) for i in range(2)]
    scanned = jax.lax.scan(lambda _, args: (None, one(*args)), None, pairs)[1]
    for found in (jax.jit(jax.vmap(one))(*pairs), scanned):
        for i in range(2):
            jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), found, expected[i])
    again = jax.grad(jax.checkpoint(lambda x: jnp.sum(grouped_matmul(x, w, sizes, impl=impl) ** 2)))(x)
    np.testing.assert_allclose(again, expected[0][1][0], rtol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "blocked"])
def test_each_of_two_devices_has_its_own_groups(impl: str) -> None:
    x, w, sizes = drawn()
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("d",))
    rows = jnp.concatenate([x, -x]), jnp.concatenate([sizes, sizes])
    body = lambda x, w, sizes: grouped_matmul(x, w, sizes, impl=impl)
    f = jax.shard_map(body, mesh=mesh, in_specs=(P("d"), P(), P("d")), out_specs=P("d"), check_vma=False)
    total = lambda x, w: (jnp.sum(f(x, w, rows[1]) ** 2), f(x, w, rows[1]))
    (dx, dw), found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(rows[0], w)
    alone = lambda x, w: jnp.sum(grouped_matmul(x, w, sizes, impl="reference") ** 2)
    once = grouped_matmul(x, w, sizes, impl="reference")
    np.testing.assert_allclose(found, np.concatenate([once, -once]), rtol=1e-5)
    expected = jax.grad(alone, (0, 1))(x, w)
    np.testing.assert_allclose(dx, np.concatenate([expected[0], -expected[0]]), rtol=1e-5)
    np.testing.assert_allclose(dw, 2 * expected[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((4, 3), jnp.int32)}, "x is int32 and w float32: both must have one floating point dtype"),
        ({"x": jnp.ones((4, 5))}, r"x \(4, 5\) and w \(2, 3, 7\): must be \(M, K\) and \(groups, K, N\)"),
        ({"transpose_w": True}, r"must be \(M, K\) and \(groups, N, K\)"),
        ({"group_sizes": jnp.ones(2)}, "group_sizes are float32: must be integers"),
        ({"group_sizes": jnp.ones(3, jnp.int32)}, r"group_sizes \(3,\) for w \(2, 3, 7\): must be one for each group"),
        ({"out_dtype": "int8"}, "out_dtype = int8: must be a floating point dtype"),
        ({"impl": "fast"}, "has no implementation 'fast'; there are auto, mosaic, blocked, reference"),
    ],
)
def test_bad_inputs_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    arguments = {"x": jnp.ones((4, 3)), "w": jnp.ones((2, 3, 7)), "group_sizes": jnp.ones(2, jnp.int32), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        grouped_matmul(**arguments)


@pytest.mark.parametrize(
    ("x", "w", "options", "reason"),
    [
        ((8, 64), (2, 64, 64), {"dtype": "float32"}, "x is float32; wgmma and fp32 sums are for bfloat16 and float16"),
        ((8, 60), (2, 60, 64), {}, "K = 60 and N = 64 must be multiples of 64"),
        ((8, 64), (2, 64, 96), {}, "K = 64 and N = 96 must be multiples of 64"),
        ((0, 64), (2, 64, 64), {}, "x has no rows"),
        ((8, 64), (2, 64, 64), {"out_dtype": jnp.dtype("float16")}, "out_dtype = float16: must be bfloat16 or float32"),
    ],
)
def test_the_kernels_say_what_they_cannot_do(x: Any, w: Any, options: dict[str, Any], reason: str) -> None:
    dtype = options.pop("dtype", "bfloat16")
    arrays = jnp.ones(x, dtype), jnp.ones(w, dtype), jnp.ones(2, jnp.int32)
    with for_target(H200), pytest.raises(ImplementationError, match=reason):
        OP(*arrays, Options(**options), impl="mosaic")


def test_the_choice_is_recorded_with_its_configurations() -> None:
    with recording() as choices:
        lower_for_cuda(grouped_matmul, *shapes())
        grouped_matmul(*drawn())
    assert [(c.implementation, len(c.configs)) for c in choices] == [("mosaic", 2), ("blocked", 0)]
    assert choices[0].configs[0].config == "Product(columns=256, stages=4, together=16)"
    assert choices[1].refused == (("mosaic", "needs a Hopper GPU, this is cpu"),)


def test_a_pipeline_that_would_wait_for_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="stages = 2: must be at least 3"):
        configs.Outer(256, 2, 2, 16)


def one_row_less(starts: Any, ends: Any, rows: int) -> Any:
    return schedule.row_tiles(starts, ends, rows).at[:-1, 3].add(-1)


FAULTY = case((61, 7, 31), 99)
MUTATIONS = {
    "a group's last row is not stored": ("row_tiles", one_row_less, dataclasses.replace(FAULTY, differentiate=())),
    "rows of other groups are not masked": ("_keep_rows", lambda ref, low, after: None, FAULTY),
    "a block is overwritten before it is used": (
        "_wait_until_free",
        lambda free, step, stages: None,
        dataclasses.replace(case((61, 7, 31), 99, width=512), differentiate=()),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_these_tests_see_a_fault(name: str, two_cores, monkeypatch) -> None:
    attribute, wrong, faulty = MUTATIONS[name]
    monkeypatch.setattr(kernels, attribute, wrong)
    with pytest.raises(Exception, match=r"is off by|CpuCallback|[Bb]arrier"):
        testing.check(OP, "mosaic", faulty, interpret=True)


@pytest.mark.parametrize("transpose_w", [False, True])
def test_a_measured_configuration_is_that_of_the_products_own_sizes(transpose_w: bool, monkeypatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        configs, "tuned", lambda op, name, key, **rest: asked.setdefault(name, key) and rest["otherwise"]
    )
    x, w = jnp.ones((8, 64), jnp.bfloat16), jnp.ones((2, 128, 64) if transpose_w else (2, 64, 128), jnp.bfloat16)
    configs.configured(x, w, Options(transpose_w))
    assert (asked["mosaic_outer"]["width"], asked["mosaic_outer"]["columns"]) == (
        (128, 64) if transpose_w else (64, 128)
    )


def test_tiles_that_divide_no_result_are_refused() -> None:
    x, dy, ends = jnp.ones((8, 64), jnp.bfloat16), jnp.ones((8, 192), jnp.bfloat16), jnp.array([8], jnp.int32)
    with for_target(H200), pytest.raises(ValueError, match="tiles of 128 do not divide 192"):
        kernels.outer(
            x, dy, jnp.zeros_like(ends), ends, config=dataclasses.replace(configs.outer_rule(64, 192), columns=128)
        )
