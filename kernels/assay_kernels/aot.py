"""Lowering and compiling for a CUDA device that is not there: what Pallas, XLA and ptxas refuse comes up on any machine."""

import importlib.resources
import re
from collections.abc import Callable
from typing import Any

import jax

from assay_kernels import compat
from assay_kernels.target import H200, Target, for_target


def lower_for_cuda(function: Callable[..., Any], *arguments: Any, device: Target = H200, **options: Any) -> str:
    """The StableHLO text of `function` for `device`; kernels are chosen for it as well. Nothing is compiled, no driver is needed.

    arguments: arrays or jax.ShapeDtypeStructs. Raises what lowering raises, such as for an operation that a kernel's language lacks.
    """
    with for_target(device), compat.abstract_device(device.platform, device.device_kind, device.cores):
        lowered = jax.jit(function).trace(*arguments, **options).lower(lowering_platforms=(device.platform,))
    return lowered.as_text()


def lower_gradient_for_cuda(function: Callable[..., Any], *arguments: Any, device: Target = H200) -> str:
    """The same of value and gradient, with respect to all floating point arguments; `function` must return a scalar.

    A gradient is lowered apart because what lacks one may only show for the platform meant (as inside jax.lax.platform_dependent).
    """
    floating = tuple(i for i, x in enumerate(arguments) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating))
    return lower_for_cuda(jax.value_and_grad(function, argnums=floating), *arguments, device=device)


def compile_for_h200(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` compiled down to machine code for one H200; it can be read (`memory_analysis`, `as_text`), but not called here.

    arguments: anything with shape and dtype. Needs the packages jax-cuda13-plugin, jax-cuda13-pjrt and absl-py, of jax's own version;
    no driver. XLA tunes nothing in this mode, so the products it takes may differ from those on the device. Raises what compiling raises,
    such as RESOURCE_EXHAUSTED for a kernel that needs more shared memory than there is.
    """
    here = importlib.resources.files("assay_kernels") / "data" / "nvidia_h200.textproto"
    sharding = compat.absent_device("cuda", here.read_text(encoding="utf-8"))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments]
    absent = next(iter(sharding.device_set))  # cuDNN's attention is lowered for jax's default device
    described = compat.abstract_device(H200.platform, H200.device_kind, H200.cores)
    with for_target(H200), described, jax.default_device(absent):
        return jax.jit(function).lower(*shapes).compile()


def custom_calls(text: str) -> list[str]:
    """The targets of the custom calls in a StableHLO text, each once."""
    return sorted(set(re.findall(r"custom_call @([\w$.]+)", text)))
