"""The device that kernels are chosen for: the one that there is, or another that the caller names."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from assay_kernels.compat import default_device

_explicit = jax.make_user_context(None)  # unlike a ContextVar it is part of jit's cache key, so that no trace is stale


@dataclasses.dataclass(frozen=True)
class Target:
    """platform: "cpu", "cuda", "rocm" or "tpu". device_kind: as jax names it. compute_capability: of a CUDA device, such as (9, 0).

    divided: in words, why arrays lie on several devices and the compiler divides what is done with them, which it cannot do with a
    kernel that it does not know; None where a device has all that its kernels need.
    """

    platform: str
    device_kind: str
    compute_capability: tuple[int, int] | None = None
    cores: int = 1
    divided: str | None = None

    @property
    def is_hopper(self) -> bool:
        """Whether kernels for compute capability 9.0 (wgmma, TMA) can be called: on such a CUDA device, on arrays that it has whole."""
        return self.platform == "cuda" and self.compute_capability == (9, 0) and self.divided is None

    def __str__(self) -> str:
        capability = self.compute_capability
        name = self.device_kind if capability is None else f"{self.device_kind} (sm_{capability[0]}{capability[1]})"
        return (
            name
            if self.divided is None
            else f"{name} among several that the compiler divides arrays over: {self.divided}"
        )


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
