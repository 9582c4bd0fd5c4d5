"""rms_norm: the specification, and the Mosaic kernels in the interpreter against it, at the edges of shapes and values."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from assay_kernels import H200, ImplementationError, audit, disagreements, for_target, mosaic, recording
from assay_kernels.aot import custom_calls, lower_for_cuda, lower_gradient_for_cuda
from assay_kernels.rms_norm import OP, bench, rms_norm
from assay_kernels.rms_norm import mosaic as kernels
from assay_kernels.rms_norm.cases import CASES, Call
from assay_kernels.testing import check

INTERPRETED = {
    "short rows": Call((9 * 16 + 3,), 128, epsilon=0.0),
    "long rows and residual": Call((5,), 768, "float32", residual=True),
}
EDGES = ("one row", "heads", "fp16", "huge", "tiny", "rows of zeros")


def shape(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize("name", EDGES)
def test_the_specification_is_as_exact_as_its_dtype(name: str) -> None:
    check(OP, "reference", CASES[name])


def test_it_is_flax_rmsnorm() -> None:
    x, w, *_ = Call((4, 9), 48, "float32").draw(0)
    theirs = nnx.RMSNorm(48, epsilon=1e-5, rngs=nnx.Rngs(0))
    theirs.scale[...] = w
    np.testing.assert_allclose(rms_norm(x, w, eps=1e-5), theirs(x), rtol=1e-5, atol=1e-6)
    y, total = rms_norm(x, w, residual=2 * x, eps=1e-5)
    np.testing.assert_allclose(total, 3 * x)
    np.testing.assert_allclose(y, theirs(3 * x), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    with jax.enable_x64(True):
        x, w = (jnp.asarray(v, "float64") for v in Call((3,), 8).draw(0)[:2])
        f = lambda x, w, r: sum(jnp.sum(jnp.sin(v)) for v in rms_norm(x, w, residual=r, eps=0.1))
        check_grads(f, (x, w, 0.5 * x), order=1)


@pytest.fixture
def small(monkeypatch) -> None:
    """One multiprocessor with two warpgroups and rings of two: they walk over more tiles than a ring holds, and add dw up."""
    monkeypatch.setattr(kernels, "current_target", lambda: dataclasses.replace(H200, cores=1))
    monkeypatch.setattr(kernels, "tuned", lambda *a, **k: kernels.Config(2, 2))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_kernels_are_as_exact_as_the_specification(name: str, small) -> None:
    check(OP, "mosaic", INTERPRETED[name].case(), interpret=True)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="jax 0.10's interpreter sees only a part of the races")
@pytest.mark.parametrize("name", INTERPRETED)
def test_nothing_is_used_that_a_copy_may_still_write_or_read(name: str, small) -> None:
    check(OP, "mosaic", INTERPRETED[name].case(), interpret=True, races=True)


def test_these_tests_see_the_wrong_mask(small, monkeypatch) -> None:
    """With epsilon = 0 what lies beyond the last row has an infinite factor."""
    monkeypatch.setattr(mosaic, "iota", lambda shape, *rest: jnp.zeros(shape, jnp.int32) - 1000)
    with pytest.raises(AssertionError, match="gradient 1"):
        check(OP, "mosaic", CASES["a tile and one row"], interpret=True)


@pytest.mark.parametrize("residual", [False, True])
def test_value_and_gradient_are_lowered_for_cuda(residual: bool) -> None:
    x, w = shape(8, 128, 1024), shape(1024)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        found = rms_norm(x, w, residual=x if residual else None)
        return sum((jnp.sum(v.astype(jnp.float32)) for v in jax.tree.leaves(found)), jnp.zeros(()))

    with recording() as choices:
        texts = lower_for_cuda(loss, x, w), lower_gradient_for_cuda(loss, x, w)
    assert {(c.implementation, c.configs[0].source) for c in choices} == {("mosaic", "rule")}
    assert [custom_calls(text) == ["mosaic_gpu_v2"] for text in texts] == [residual, True]


def test_inside_vmap_scan_and_remat_it_is_lowered_for_cuda() -> None:
    one = lambda x, w: jnp.sum(rms_norm(x, w).astype(jnp.float32) ** 2)
    x, w = shape(3, 64, 256), shape(256)
    several = {
        "vmap": lambda x, w: jnp.sum(jax.vmap(one, (0, None))(x, w)),
        "scan": lambda x, w: jax.lax.scan(lambda total, x: (total + one(x, w), None), 0.0, x)[0],
        "remat": jax.checkpoint(one),
    }
    for name, f in several.items():
        assert "mosaic_gpu_v2" in custom_calls(lower_gradient_for_cuda(f, x, w)), name


def test_inside_shard_map_on_two_devices() -> None:
    x, w, *_ = Call((4, 8), 64, "float32").draw(0)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))

    def total(impl: str, x: jax.Array, w: jax.Array) -> jax.Array:
        norm = functools.partial(rms_norm, impl=impl)
        divided = jax.shard_map(norm, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
        return jnp.sum(jnp.sin(divided(x, w)))

    whole = jax.grad(lambda x, w: jnp.sum(jnp.sin(rms_norm(x, w))), (0, 1))(x, w)
    found = jax.jit(jax.grad(functools.partial(total, "reference"), (0, 1)))(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, whole)


def test_the_record_and_the_compiled_gradient_agree() -> None:
    x, w, *_ = Call((4,), 64, "float32").draw(0)
    with recording() as choices:
        compiled = jax.jit(jax.grad(lambda x, w: jnp.sum(rms_norm(x, w) ** 2))).lower(x, w).compile()
    assert [(c.implementation, dict(c.refused)) for c in choices] == [
        ("reference", {"mosaic": "needs a Hopper GPU, this is cpu"})
    ]
    assert disagreements(choices, audit(compiled)) == []


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call((4,), 100), "the width, 100, is no multiple of 64"),
        (Call((4,), 16384), "rows of 16384 x bfloat16 do not fit into a multiprocessor"),
        (Call((0,), 128), r"x \(0, 128\) is empty"),
        (Call((3,), 64), "3 rows of width 64 are no multiple of 8"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_in_words(call: Call, reason: str) -> None:
    arguments = call.draw(0)
    with for_target(H200), pytest.raises(ImplementationError, match=reason):
        OP(*arguments, impl="mosaic")
    with for_target(H200), recording() as choices:
        OP(*arguments)
    assert choices[0].implementation == "reference"


def test_mixed_dtypes_are_the_references() -> None:
    x, w = jnp.ones((4, 64), jnp.bfloat16), jnp.ones(64, jnp.float32)
    with for_target(H200), recording() as choices:
        assert rms_norm(x, w).dtype == jnp.float32
    assert dict(choices[0].refused)["mosaic"].startswith("x is bfloat16 and w float32: both must be one of")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((4, 3), jnp.int32)}, "x is int32 and w float32: both must have floating point dtypes"),
        ({"w": jnp.ones(4)}, r"x \(4, 3\) and w \(4,\): must be \(\*items, width\) and \(width,\)"),
        ({"residual": jnp.ones((4, 1))}, r"residual is float32\[4, 1\] and x float32\[4, 3\]: must be equal"),
        ({"residual": jnp.ones((4, 3), jnp.bfloat16)}, "residual is bfloat16"),
        ({"eps": -1.0}, "eps = -1.0: must be at least 0"),
    ],
)
def test_bad_inputs_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        rms_norm(**{"x": jnp.ones((4, 3)), "w": jnp.ones(3), **change})


def test_what_is_benchmarked_runs() -> None:
    small = bench.SHAPES["small"]
    for mode in ("vjp", "added", "step"):
        each = bench.Shape(small.rows, small.width, mode, small.dtype)
        for call in bench.contenders(each).values():
            assert all(np.isfinite(v).all() for v in jax.tree.leaves(jax.jit(call)(*each.arguments())))
        assert bench.TUNABLE["mosaic"].space(each)
