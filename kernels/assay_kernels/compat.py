"""What knows versions of jax, beside mosaic.py for Pallas' kernels: names that moved, or that jax does not promise to keep, come from here.

Tried with jax 0.10.2 (Python 3.11), 0.11.2 and 0.12.0.1 (Python 3.12).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec, use_abstract_mesh


def tagged(**attributes: str) -> contextlib.AbstractContextManager[None]:
    """Every operation traced inside carries `attributes` (HLO's frontend attributes); they survive compilation and differentiation."""
    return set_xla_metadata(**attributes)


@contextlib.contextmanager
def abstract_device(platform: str, device_kind: str, cores: int) -> Iterator[None]:
    """Lower for a device that this process does not have. From jax 0.11 on Pallas refuses to lower for CUDA without it."""
    device = AbstractDevice(device_kind=device_kind, num_cores=cores, platform=platform)
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        yield


def absent_device(platform: str, description: str) -> jax.sharding.Sharding:
    """Where an array lies whole on a device that XLA only knows from a description (a GpuTargetConfigProto as text)."""
    topology = topologies.get_topology_desc(platform=platform, target_config=description, topology="1x1x1")
    return NamedSharding(topologies.make_mesh(topology, (1,), ("device",)), PartitionSpec())


def default_device() -> jax.Device:
    """The device on which a computation runs that nothing else places."""
    config: Any = jax.config  # its attributes are made at run time
    chosen = config.jax_default_device
    if isinstance(chosen, str):
        return jax.devices(chosen)[0]
    return jax.devices()[0] if chosen is None else chosen


def has_cudnn() -> bool:
    """Whether jax has a CUDA plugin here that finds cuDNN, which jax.nn asks for its version when it is traced."""
    try:
        from jax._src.lib import cuda_versions

        return cuda_versions is not None and bool(cuda_versions.cudnn_get_version())
    except (ImportError, RuntimeError):
        return False


def alike(*arrays: Any) -> tuple[Any, ...]:
    """The arrays (or None), each varying over every mesh axis that one of them varies over; no change outside jax.shard_map.

    The transpose adds a cotangent up over the axes that its array was made to vary over.
    """
    axes = [_varies_over(x) for x in arrays]
    every = frozenset().union(*axes)
    return tuple(
        x if x is None or not every - own else jax.lax.pcast(x, tuple(sorted(every - own)), to="varying")
        for x, own in zip(arrays, axes, strict=True)
    )


def _varies_over(x: Any) -> frozenset[Any]:
    return frozenset() if x is None else frozenset(jax.typeof(x).manual_axis_type.varying)
