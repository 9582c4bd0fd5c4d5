"""The device that kernels are chosen for: the one that there is, or another that the caller names."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from assay_kernels.compat import default_device

_explicit = jax.make_user_context(None)  # unlike a ContextVar it is part of jit's cache key, so that no trace is stale


@dataclasses.dataclass(frozen=True)
class Target:
    """platform: "cpu", "cuda", "rocm" or "tpu". device_kind: as jax names it. compute_capability: of a CUDA device, such as (9, 0)."""

    platform: str
    device_kind: str
    compute_capability: tuple[int, int] | None = None
    cores: int = 1

    @property
    def is_hopper(self) -> bool:
        """Whether it is a CUDA device with wgmma and TMA as compute capability 9.0 has them."""
        return self.platform == "cuda" and self.compute_capability == (9, 0)

    def __str__(self) -> str:
        if self.compute_capability is None:
            return self.device_kind
        return f"{self.device_kind} (sm_{self.compute_capability[0]}{self.compute_capability[1]})"


H200 = Target("cuda", "NVIDIA H200", (9, 0), cores=132)
H100 = Target("cuda", "NVIDIA H100 80GB HBM3", (9, 0), cores=132)


def current_target() -> Target:
    """The target of the innermost `for_target`, or else jax's default device."""
    named: Target | None = _explicit.value
    return target_of(default_device()) if named is None else named


@contextlib.contextmanager
def for_target(named: Target) -> Iterator[None]:
    """Choose kernels for `named` in everything that is traced inside; a function that was traced before is traced again."""
    with _explicit(named):
        yield


def target_of(device: jax.Device) -> Target:
    """The target that a device is."""
    if device.platform != "gpu":
        return Target(device.platform, device.device_kind)
    if not device.device_kind.startswith("NVIDIA"):
        return Target("rocm", device.device_kind)
    major, minor = str(getattr(device, "compute_capability", "0.0")).split(".")
    return Target("cuda", device.device_kind, (int(major), int(minor)), int(getattr(device, "core_count", 1)))
