"""Lowering for a CUDA device that is not there: what Pallas and XLA's lowering refuse comes up on any machine."""

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


def custom_calls(text: str) -> list[str]:
    """The targets of the custom calls in a StableHLO text, each once."""
    return sorted(set(re.findall(r"custom_call @([\w$.]+)", text)))
