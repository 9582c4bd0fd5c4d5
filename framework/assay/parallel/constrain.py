"""`constrain`: how a model states, by logical names, where an activation lives, without knowing the mesh."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax.sharding import NamedSharding

from assay_kernels import current_target, for_target

_Resolve = Callable[[tuple[str | None, ...]], NamedSharding]
_current: contextvars.ContextVar[_Resolve | None] = contextvars.ContextVar("assay_layout", default=None)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, any shape, with its dimensions placed as the active layout says; without a layout, `x` itself.

    axes: one logical name (or None, for not divided) for each dimension of `x`. Raises ValueError when their number differs.
    """
    resolve = _current.get()
    if resolve is None:
        return x
    if len(axes) != x.ndim:
        raise ValueError(f"constrain: {len(axes)} axis names {axes} for an array of shape {x.shape}")
    return jax.lax.with_sharding_constraint(x, resolve(axes))


def parts(axis: str) -> int:
    """Into how many parts the active layout divides a logical axis; 1 without a layout."""
    resolve = _current.get()
    if resolve is None:
        return 1
    sharding = resolve((axis,))
    size = sharding.mesh.size
    return size // sharding.shard_shape((size,))[0]


def active() -> _Resolve | None:
    """From logical names of an array's dimensions to its sharding, as the active layout says; None without one."""
    return _current.get()


@contextlib.contextmanager
def layout(resolve: _Resolve) -> Iterator[None]:
    """Make `resolve` the active layout. The core enters it inside each traced function, so that jit's cache sees one layout only.

    On several devices, kernels that the compiler cannot divide are refused inside but for calls by `assay.parallel.per_device`.
    """
    token = _current.set(resolve)
    target = current_target()
    if resolve(()).mesh.size > 1 and target.platform == "cuda":
        target = dataclasses.replace(target, divided="it is not called through assay.parallel.per_device")
    try:
        with for_target(target):
            yield
    finally:
        _current.reset(token)
