"""What an op's `bench` module holds, for benchmarks/kernels.py and `python -m assay_kernels.tune` to run.

SHAPES: Mapping[str, Shape]; contenders(shape) -> {name: function of shape.arguments()}; BARS: Sequence[Bar]; perhaps TUNABLE: Mapping[str,
Tunable], by implementation; perhaps torch_contenders(shape) -> {name: function of the same arguments as torch tensors}. A contender that
cannot run here is left out of the mapping.
"""

import dataclasses
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp


class Shape(Protocol):
    """A call that is measured."""

    @property
    def flops(self) -> int:
        """Floating point operations that the op needs at least; 0 where only memory counts."""

    @property
    def bytes(self) -> int:
        """Bytes that the op reads and writes at least; 0 where only arithmetic counts."""

    @property
    def on(self) -> tuple[str, ...]:
        """Where it is run, not only compiled: of "cpu" and "gpu"."""

    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arguments as shapes."""

    def arguments(self) -> tuple[jax.Array, ...]:
        """The arguments, drawn."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """What is asked of one H200. unit: "TFLOP/s" or "TB/s" of `contender`, or "x": how many times as fast as the best of `rivals`.

    "x less memory": how many times less temporary memory than the best of `rivals`, which is asked of every device.
    """

    shape: str
    contender: str
    at_least: float
    unit: Literal["TFLOP/s", "TB/s", "x", "x less memory"]
    rivals: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Tunable:
    """How an implementation is tuned. key: shape -> what assay_kernels.tuning.tuned is asked with. space: shape -> configurations, as
    dataclasses. run: (shape, configuration) -> function of shape.arguments(). exact: as for `tuned`.
    """

    key: Callable[[Any], Mapping[str, int | str]]
    exact: tuple[str, ...]
    space: Callable[[Any], Sequence[Any]]
    run: Callable[[Any, Any], Callable[..., Any]]


def apart(found: Any, others: Any) -> float:
    """The largest relative difference in norm of two trees of arrays of the same shapes; infinite where they are finite in other places."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(others), strict=True)
    return max((float(_apart(a, b)) for a, b in pairs if a.size), default=0.0)


@jax.jit
def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = (x.astype(jnp.float32).reshape(-1) for x in (a, b))
    finite = jnp.isfinite(b)
    a, b, same = jnp.where(finite, a, 0), jnp.where(finite, b, 0), jnp.all(jnp.isfinite(a) == finite)
    return jnp.where(same, jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) + 1e-30), jnp.inf)


def benched() -> list[str]:
    """The ops that have a `bench` module."""
    return ops_with("bench")


def ops_with(module: str) -> list[str]:
    """The subpackages of assay_kernels that have such a module."""
    import assay_kernels

    packages = [found.name for found in pkgutil.iter_modules(assay_kernels.__path__) if found.ispkg]
    return [name for name in packages if importlib.util.find_spec(f"assay_kernels.{name}.{module}") is not None]
