"""What an implementation of an op must do: values and gradients as exact as the specification's own, on the op's cases.

    check(OP, "mine", CASES["causal"])                      # on the device that there is
    check(OP, "mosaic", CASES["causal"], interpret=True)    # a Mosaic kernel, on any machine
    examine(OP, "mine", CASES["causal"])                    # check, the same bits in ten runs, and that the program holds the kernel

The specification (the op's `reference`) is evaluated in float64 from the same rounded inputs. An implementation may be off by twice what
the specification itself is off in the inputs' dtype, three times for gradients, and by no more than the case's ceiling.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay_kernels.op import Op
from assay_kernels.record import audit, disagreements, made_before, recording
from assay_kernels.target import H200, for_target

VALUE_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
CEILING = {"bfloat16": 8e-3, "float16": 1e-3, "float32": 4e-6, "float64": 1e-12}  # of the relative error in norm


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One call of an op. draw: seed -> its positional arguments, arrays, None and options as `OP(...)` takes them.

    differentiate: positions of the arguments with a gradient. valid: (outputs) -> the outputs without what the op leaves undefined.
    ceiling: of the relative error of values; the inputs' dtype's without. Of gradients it is three times that.
    """

    draw: Callable[[int], tuple[Any, ...]]
    differentiate: tuple[int, ...] = ()
    valid: Callable[[Any], Any] = lambda outputs: outputs
    ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors in norm against float64, one for each output and each gradient; own: the implementation's, naive: the reference's."""

    own: tuple[float, ...]
    naive: tuple[float, ...]
    own_gradients: tuple[float, ...]
    naive_gradients: tuple[float, ...]


def check(
    op: Op, implementation: str, case: Case, *, interpret: bool = False, races: bool = False, seed: int = 0
) -> Errors:
    """Run the case by the implementation and raise AssertionError, naming the outputs, where it is less exact than it must be.

    interpret: choose for an H200, and run Mosaic kernels in the interpreter; races: see assay_kernels.mosaic.interpreted.
    """
    arguments = case.draw(seed)
    dtype = next(x.dtype for x in arguments if is_floating(x))
    ceiling = case.ceiling or CEILING[jnp.dtype(dtype).name]
    with device(interpret, races):
        own = outputs(op, implementation, case, arguments, seed)
    naive, (values, gradients) = outputs(op, "reference", case, arguments, seed), exact(op, case, arguments, seed)
    found = Errors(
        errors(own[0], values), errors(naive[0], values), errors(own[1], gradients), errors(naive[1], gradients)
    )
    worse = _too_large("output", found.own, found.naive, VALUE_FACTOR, ceiling)
    worse += _too_large(
        "gradient", found.own_gradients, found.naive_gradients, GRADIENT_FACTOR, GRADIENT_FACTOR * ceiling
    )
    assert not worse, f"{op.name}.{implementation}: " + "; ".join(worse)
    return found


def examine(op: Op, implementation: str, case: Case, *, runs: int = 10, seed: int = 0) -> Errors:
    """`check` on the device that there is; besides, the compiled program must hold just the implementation, and all runs the same bits.

    Raises AssertionError.
    """
    found = check(op, implementation, case, seed=seed)
    name = f"{op.name}.{implementation}"
    function, arrays = computation(op, implementation, case, case.draw(seed), seed)
    with recording() as choices:
        program = jax.jit(function).lower(*arrays).compile()
    held = audit(program)
    wrong = disagreements([*choices, *made_before(held, choices)], held)
    assert not wrong, f"{name}: {'; '.join(wrong)}"
    first = _bits(program(*arrays))
    for run in range(1, runs):
        other = _bits(program(*arrays))
        apart = [i for i, (a, b) in enumerate(zip(first, other, strict=True)) if a != b]
        assert not apart, f"{name}: run {run} gave other bits than the first in outputs and gradients {apart}"
    return found


def computation(
    op: Op, implementation: str, case: Case, arguments: Sequence[Any], seed: int = 0
) -> tuple[Callable[..., tuple[Any, Any]], list[jax.Array]]:
    """(a function of the arrays among the arguments, those arrays).

    The function gives (values, gradients of their sum with random cotangents), without gradients where the case has none.
    """
    dynamic = [i for i, x in enumerate(arguments) if isinstance(x, jax.Array)]

    def call(*arrays: Any) -> Any:
        full = list(arguments)
        for i, x in zip(dynamic, arrays, strict=True):
            full[i] = x
        return case.valid(op(*full, impl=implementation))

    def total(*arrays: Any) -> tuple[jax.Array, Any]:
        values = call(*arrays)
        floating = [v for v in jax.tree.leaves(values) if is_floating(v)]
        rng = np.random.default_rng(seed + 1)
        cotangents = [rng.normal(size=v.shape) for v in floating]
        wide = [v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in floating]
        finite = [jnp.where(jnp.isfinite(v), v, 0) for v in wide]
        products = [jnp.sum(v * c.astype(v.dtype)) for v, c in zip(finite, cotangents, strict=True)]
        return sum(products, jnp.zeros(())), values

    def both(*arrays: Any) -> tuple[Any, Any]:
        if not case.differentiate:
            return call(*arrays), ()
        gradients, values = jax.grad(total, [dynamic.index(i) for i in case.differentiate], has_aux=True)(*arrays)
        return values, gradients

    return both, [arguments[i] for i in dynamic]


def outputs(
    op: Op, implementation: str, case: Case, arguments: Sequence[Any], seed: int = 0
) -> tuple[list[Any], list[Any]]:
    """(values, gradients) of `computation` as numpy arrays, in the order of jax.tree.leaves."""
    function, arrays = computation(op, implementation, case, arguments, seed)
    values, gradients = jax.jit(function)(*arrays)
    return _numpy(values), _numpy(gradients)


def exact(op: Op, case: Case, arguments: Sequence[Any], seed: int = 0) -> tuple[list[Any], list[Any]]:
    """`outputs` of the reference in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) if is_floating(x) else x for x in arguments]
        return outputs(op, "reference", case, wide, seed)


def errors(found: Sequence[Any], true: Sequence[Any]) -> tuple[float, ...]:
    """Relative errors in norm; infinite where an array is not finite in the same places as the true one."""
    return tuple(_error(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(found, true, strict=True))


@contextlib.contextmanager
def device(interpret: bool, races: bool = False) -> Iterator[None]:
    """The device that there is, or an H200 whose Mosaic kernels run in the interpreter."""
    if not interpret:
        yield
        return
    from assay_kernels import mosaic

    with for_target(H200), mosaic.interpreted(races=races):
        yield


def is_floating(x: Any) -> bool:
    """Whether it is an array of floating point numbers."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _bits(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def _numpy(tree: Any) -> list[Any]:
    return [
        np.asarray(x.astype(jnp.promote_types(x.dtype, jnp.float32)) if is_floating(x) else x)
        for x in jax.tree.leaves(tree)
    ]


def _error(found: Any, true: Any) -> float:
    if found.shape != true.shape or not np.array_equal(np.isfinite(found), np.isfinite(true)):
        return float("inf")
    keep = np.isfinite(true)
    return float(np.linalg.norm(found[keep] - true[keep]) / (np.linalg.norm(true[keep]) + 1e-30))


def _too_large(what: str, own: Sequence[float], naive: Sequence[float], factor: float, ceiling: float) -> list[str]:
    tiny = 0.1 * ceiling
    pairs = enumerate(zip(own, naive, strict=True))
    return [
        f"{what} {i} is off by {mine:.2e} in norm, the specification in the same dtype by {its:.2e}"
        for i, (mine, its) in pairs
        if not mine <= min(factor * its + tiny, ceiling)
    ]
