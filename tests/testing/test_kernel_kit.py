"""The conformance kit of kernels: what does as the specification does passes, and each check catches the kernel that it is for."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.testing import KernelKit, run
from assay_kernels.linear_cross_entropy import OP
from assay_kernels.linear_cross_entropy.reference import reference
from assay_kernels.linear_cross_entropy.shapes import Options
from assay_kernels.testing import Case


def drawn(seed: int, tokens: int, options: Options) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((tokens, 8), (8, options.classes)))
    return x, w, jnp.asarray(rng.integers(0, options.classes, tokens), jnp.int32), None, options


CASES = {
    "plain": Case(lambda seed: drawn(seed, 12, Options(17)), differentiate=(0, 1)),
    "soft-cap": Case(lambda seed: drawn(seed, 5, Options(9, softcap=3.0)), differentiate=(0, 1)),
    "z-loss": Case(lambda seed: drawn(seed, 5, Options(9, z_loss=0.1)), differentiate=(0, 1)),
}


@dataclasses.dataclass(frozen=True)
class Sound:
    """As one writes it, without any option but the z-loss."""

    op: ClassVar[str] = "linear_cross_entropy"
    name: ClassVar[str] = "as_written"
    priority: ClassVar[int] = 50

    def supports(self, target, x, w, labels, weights, options) -> str | None:
        plain = dataclasses.replace(options, z_loss=0.0) == Options(options.classes)
        return None if plain and w.shape[1] == options.classes else "has no option but z_loss"

    def __call__(self, x, w, labels, weights, options) -> Any:
        logits = (x @ w).astype(jnp.float32)
        lse = jax.nn.logsumexp(logits, axis=-1)
        nll = lse - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
        return type(reference(x, w, labels, weights, options))(nll + options.z_loss * lse**2, nll, lse)


class Scaled(Sound):
    def __call__(self, *arguments) -> Any:
        return jax.tree.map(lambda v: 1.001 * v, super().__call__(*arguments))


class NoGradient(Sound):
    def __call__(self, x, w, *others) -> Any:
        return super().__call__(x, jax.lax.stop_gradient(w), *others)


class Drifting(Sound):
    calls = itertools.count()

    def __call__(self, *arguments) -> Any:
        noise = jax.pure_callback(lambda: np.float32(next(self.calls) * 1e-7), jax.ShapeDtypeStruct((), "float32"))
        return jax.tree.map(lambda v: v * (1 + jax.lax.stop_gradient(noise)), super().__call__(*arguments))


class Elsewhere(Sound):
    """Leaves it to another implementation."""

    def __call__(self, *arguments) -> Any:
        return OP(*arguments, impl="reference")


class Silent(Sound):
    def supports(self, *arguments) -> Any:
        return super().supports(*arguments) and ""


class Never(Sound):
    def supports(self, *arguments) -> str:
        return "is not finished"


class Callback(Sound):
    """Lowers for no device but the one that is there."""

    def __call__(self, x, w, labels, weights, options) -> Any:
        if jax.sharding.get_abstract_mesh().abstract_device is not None:
            raise NotImplementedError("needs a real device")
        return super().__call__(x, w, labels, weights, options)


@dataclasses.dataclass(frozen=True)
class Unhashable(Sound):
    settings: list = dataclasses.field(default_factory=list)

    __hash__ = object.__hash__


class Unknown(Sound):
    op = "linear_cross_entropi"


class Taken(Sound):
    name = "chunked"


FLAWS = {
    Scaled: "test_values_and_gradients_are_exact",
    NoGradient: "test_values_and_gradients_are_exact",
    Drifting: "test_it_is_deterministic",
    Elsewhere: "test_the_program_holds_it",
    Silent: "test_a_refusal_says_why",
    Never: "test_it_supports_something",
    Callback: "test_it_lowers_for_cuda",
    Taken: "test_it_implements_an_op",
}


class TestSound(KernelKit):
    def plugin(self) -> Sound:
        return Sound()

    def cases(self) -> Any:
        return CASES


def test_what_is_checked_is_a_plugin_of_the_kind() -> None:
    from assay.kinds import Kernel

    assert isinstance(Sound(), Kernel)


def test_what_is_not_supported_is_left_out(kit_around) -> None:
    results = {r.name: r for r in run(kit_around(KernelKit, Never(), cases=lambda self: CASES))}
    assert results["test_values_and_gradients_are_exact"].status == "skipped"
    assert "is not finished" in results["test_values_and_gradients_are_exact"].detail


@pytest.mark.parametrize("flawed", FLAWS, ids=lambda c: c.__name__)
def test_a_flaw_is_caught_by_its_check(flawed, kit_around) -> None:
    kit = kit_around(KernelKit, flawed(), cases=lambda self: CASES)
    with pytest.raises((AssertionError, NotImplementedError)):
        getattr(kit, FLAWS[flawed])()


def test_what_jit_cannot_know_again_is_caught() -> None:
    kit = type("Found", (KernelKit,), {"plugin": lambda self: Unhashable()})()
    with pytest.raises(AssertionError, match="different hashes"):
        kit.test_equal_plugins_are_one_key()


def test_an_op_that_there_is_not_is_named(kit_around) -> None:
    with pytest.raises(AssertionError, match="implements 'linear_cross_entropi'; the ops are "):
        kit_around(KernelKit, Unknown()).test_it_implements_an_op()
