"""What `examine` sees: an implementation that is wrong, that gives other bits each time, or that computes outside what was chosen."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay_kernels import Op
from assay_kernels.benching import benched, ops_with
from assay_kernels.testing import Case, examine

CASE = Case(lambda seed: (jnp.asarray(np.random.default_rng(seed).normal(size=(33,)), jnp.float32),), (0,))


def op_with(function) -> Op:
    op = Op("doubled", lambda x: x + x)
    op.register("mine", supports=lambda target, x: None)(function)
    return op


def test_an_implementation_that_is_right_passes() -> None:
    found = examine(op_with(lambda x: 2 * x), "mine", CASE, runs=3)
    assert max(found.own + found.own_gradients) < 1e-6


def test_one_that_is_wrong_does_not() -> None:
    with pytest.raises(AssertionError, match=r"doubled\.mine: output 0 is off by 1\.00e-03 .* gradient 0 is off"):
        examine(op_with(lambda x: 2.002 * x), "mine", CASE)


def test_one_that_gives_other_bits_each_time_does_not() -> None:
    calls = itertools.count()

    @jax.custom_jvp
    def shaky(x: jax.Array) -> jax.Array:
        last = jax.pure_callback(
            lambda: np.float32(1 + 1e-7 * (next(calls) % 5)), jax.ShapeDtypeStruct((), jnp.float32)
        )
        return 2 * x * last

    shaky.defjvp(lambda x, dx: (shaky(*x), 2 * dx[0]))
    with pytest.raises(AssertionError, match=r"run \d gave other bits than the first in outputs and gradients \[0\]"):
        examine(op_with(shaky), "mine", CASE)


def test_one_that_computes_elsewhere_than_in_what_was_chosen_does_not() -> None:
    op = Op("same", lambda x: x * 1.0)
    op.register("mine", supports=lambda target, x: None)(lambda x: x)
    with pytest.raises(AssertionError, match="same: mine was chosen, but is not in the program"):
        examine(op, "mine", CASE)


def test_ops_are_found_by_their_modules() -> None:
    assert "linear_cross_entropy" in benched()
    assert "linear_cross_entropy" in ops_with("cases")
    assert ops_with("no_such_module") == []
