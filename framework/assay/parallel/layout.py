"""From a parallelism plugin to placements: the mesh, and the sharding of every array by the names of its axes."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from assay.errors import LayoutError, did_you_mean
from assay.kinds import Parallelism
from assay.parallel.axes import AXES

Where = Callable[[str], str]
"""Configuration key -> where it was set ("lm.gin:12"), for messages."""


def nowhere(key: str) -> str:
    """For experiments that come from no file."""
    return "default"


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, the rules from logical axes to mesh axes, and where the configuration set them (for messages)."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]
    source: str = "experiment.parallelism"

    @property
    def batch_shards(self) -> int:
        """Into how many parts the batch axis is divided."""
        return math.prod(self.mesh.shape[a] for a in self.rules.get("batch", ()))

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions have these logical names. Raises LayoutError for an unknown name."""
        return PartitionSpec(*(self._entry(axis) for axis in axes))

    def sharding(self, axes: Sequence[str | None]) -> NamedSharding:
        """The NamedSharding of an array whose dimensions have these logical names."""
        return NamedSharding(self.mesh, self.spec(axes))

    def batch(self, ndim: int, *, stacked: bool = False) -> NamedSharding:
        """The sharding of a batch array of `ndim` dimensions; stacked: with a further leading axis of steps."""
        axes = (None,) * stacked + ("batch",) + (None,) * (ndim - 1)
        return self.sharding(axes)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def _entry(self, axis: str | None) -> str | tuple[str, ...] | None:
        if axis is None:
            return None
        if axis not in self.rules and axis not in AXES:
            raise LayoutError(f"unknown logical axis {axis!r}.{did_you_mean(axis, [*AXES, *self.rules])}")
        mesh_axes = self.rules.get(axis, ())
        return mesh_axes[0] if len(mesh_axes) == 1 else (mesh_axes or None)


def make_layout(
    parallelism: Parallelism, devices: Sequence[jax.Device] | None = None, where: Where = nowhere
) -> Layout:
    """The layout of `parallelism` over `devices` (default: all). A mesh without -1 may use the first devices only.

    Raises LayoutError when the mesh does not fit the devices or leaves a process without any, or when a rule names a mesh axis that
    there is not.
    """
    devices = list(jax.devices() if devices is None else devices)
    source = f"experiment.parallelism, {where('experiment.parallelism')}"
    sizes = _resolve(dict(parallelism.mesh_axes()), len(devices), source)
    rules = {axis: tuple(mesh_axes) for axis, mesh_axes in parallelism.rules().items()}
    unknown = {m for mesh_axes in rules.values() for m in mesh_axes} - set(sizes)
    if unknown:
        raise LayoutError(f"the rules name mesh axes {sorted(unknown)}, but the mesh has {list(sizes)} ({source})")
    used = np.array(devices[: math.prod(sizes.values())]).reshape(tuple(sizes.values()))
    idle = set(range(jax.process_count())) - {device.process_index for device in used.flat}
    if idle:
        raise LayoutError(
            f"the mesh has {used.size} of {len(devices)} devices, and process {min(idle)} has none of them; "
            f"use all devices, or start fewer processes ({source})"
        )
    return Layout(Mesh(used, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)), rules, source)


def parameter_shardings(layout: Layout, shapes: Any, axes: Any) -> Any:
    """The sharding of each parameter.

    shapes: tree of arrays or ShapeDtypeStructs; axes: the same tree, with a tuple of logical names for each.
    Raises LayoutError listing every parameter that does not fit, with its shape, the axis, and the configuration line.
    """
    problems: list[str] = []

    def place(path: Any, leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
        problems.extend(_misfits(layout, jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, names))
        return layout.replicated if problems else layout.sharding(names)

    shardings = jax.tree_util.tree_map_with_path(place, shapes, axes)
    if problems:
        raise LayoutError("\n".join(problems))
    return shardings


def state_shardings(layout: Layout, state: Any, params: Any, shardings: Any) -> Any:
    """The sharding of optimizer state: that of the parameter whose path ends a leaf's path; what fits none is replicated.

    A leaf that lacks one dimension of its parameter (Adafactor's row and column statistics) keeps the others' placement.
    """
    known = {path: (leaf.shape, s) for (path, leaf), s in zip(_paths(params), jax.tree.leaves(shardings), strict=True)}

    def place(path: Any, leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            if path[start:] in known:
                shape, sharding = known[path[start:]]
                return NamedSharding(layout.mesh, _reduced(sharding.spec, shape, leaf.shape))
        return layout.replicated

    return jax.tree_util.tree_map_with_path(place, state)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that one device holds of `tree` (arrays or ShapeDtypeStructs) under `shardings`."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)


def _resolve(sizes: dict[str, int], count: int, source: str) -> dict[str, int]:
    """`sizes` with -1 replaced by what remains of `count` devices."""
    shown = ", ".join(f"{k}={v}" for k, v in sizes.items())
    fixed = math.prod(v for v in sizes.values() if v != -1)
    if list(sizes.values()).count(-1) > 1 or any(v < 1 and v != -1 for v in sizes.values()):
        raise LayoutError(f"mesh ({shown}): sizes must be at least 1, and at most one may be -1 ({source})")
    if -1 in sizes.values() and count % fixed:
        raise LayoutError(
            f"mesh ({shown}): {count} devices cannot be divided by {fixed}; choose sizes that divide it ({source})"
        )
    if fixed > count:
        raise LayoutError(
            f"mesh ({shown}) needs {fixed} devices and there are {count}; choose a smaller mesh ({source})"
        )
    return {k: count // fixed if v == -1 else v for k, v in sizes.items()}


def _misfits(layout: Layout, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> list[str]:
    """What is wrong with placing parameter `name`."""
    label = f"parameter {name} of shape {shape}"
    if len(axes) != len(shape):
        return [f"{label}: its model names {len(axes)} axes {axes}; name one for each dimension, or None"]
    problems, used = [], set[str]()
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and axis not in layout.rules and axis not in AXES:
            near = did_you_mean(axis, [*AXES, *layout.rules])
            problems.append(f"{label}: unknown logical axis {axis!r}.{near} Mesh: {layout.source}")
            continue
        mesh_axes = layout.rules.get(axis, ()) if axis else ()
        parts = math.prod(layout.mesh.shape[m] for m in mesh_axes)
        if size % parts:
            problems.append(
                f"{label}: axis {axis!r} of size {size} cannot be divided over {'×'.join(mesh_axes)} = {parts} devices; "
                f"change the model's size or the mesh ({layout.source})"
            )
        if used & set(mesh_axes):
            problems.append(f"{label}: two of its axes {axes} are divided over the same mesh axis ({layout.source})")
        used |= set(mesh_axes)
    return problems


def _paths(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _reduced(spec: PartitionSpec, shape: tuple[int, ...], leaf: tuple[int, ...]) -> PartitionSpec:
    """`spec` of an array of `shape`, for a leaf of the same shape or of the shape with one dimension dropped."""
    if leaf == shape:
        return spec
    for drop in range(len(shape)):
        if leaf == shape[:drop] + shape[drop + 1 :]:
            return PartitionSpec(*spec[:drop], *spec[drop + 1 :])
    return PartitionSpec()
