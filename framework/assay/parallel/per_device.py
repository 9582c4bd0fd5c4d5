"""`per_device`: calls a function whose kernels the compiler cannot divide by each device on its own part of the arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from assay.parallel.constrain import active, parts
from assay_kernels import current_target, for_target

Axes = tuple[str | None, ...]
"""For each dimension of an array its logical name, or None where a device has all of it."""


def per_device(
    function: Callable[..., Any], in_axes: Sequence[Axes | None], out_axes: Any, *, whole: Sequence[str] = ()
) -> Callable[..., Any]:
    """`function`, called by each device on its own part of the arrays, as the active layout divides them.

    in_axes: of each argument; None for one that is None, or that every device has whole. out_axes: a tree of Axes like `function`'s
    outputs. whole: logical axes of which every device needs all, such as the sequence.

    Without a layout, on a single device and on others than CUDA's it is `function` itself. It is called on all of the arrays as well,
    and the compiler divides its work, where a dimension cannot be divided evenly or one of `whole` is divided; then the target that
    kernels are chosen for says so, and those that the compiler cannot divide are refused, with this reason. Sums over devices that
    gradients need are added; `function` itself must need none.
    """

    def call(*arguments: Any) -> Any:
        resolve, target = active(), current_target()
        if resolve is None or target.platform != "cuda" or resolve(()).mesh.size == 1:
            return function(*arguments)
        shardings = [resolve(axes or ()) for axes in in_axes]
        reason = _divided(whole) or _uneven(arguments, in_axes)
        if reason is not None:
            with for_target(dataclasses.replace(target, divided=reason)):
                return function(*arguments)
        outputs = jax.tree.map(lambda axes: resolve(axes).spec, out_axes, is_leaf=_is_axes)
        specs = tuple(sharding.spec for sharding in shardings)
        mesh = shardings[0].mesh
        divided = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=outputs, check_vma=False)
        return divided(*arguments)

    def own(*arguments: Any) -> Any:
        with for_target(dataclasses.replace(current_target(), divided=None)):
            return function(*arguments)

    return call


def _divided(whole: Sequence[str]) -> str | None:
    return next((f"{axis!r} is divided over {parts(axis)} devices" for axis in whole if parts(axis) > 1), None)


def _uneven(arguments: Sequence[Any], in_axes: Sequence[Axes | None]) -> str | None:
    for x, axes in zip(arguments, in_axes, strict=True):
        for size, axis in zip(x.shape, axes, strict=True) if axes is not None else ():
            if axis is not None and size % parts(axis):
                return f"{axis!r} of size {size} cannot be divided over {parts(axis)} devices"
    return None


def _is_axes(tree: Any) -> bool:
    return isinstance(tree, tuple) and all(axis is None or isinstance(axis, str) for axis in tree)
