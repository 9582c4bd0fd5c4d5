"""Matrix-multiplication and convolution FLOPs of a function, counted in its jaxpr: exact, and the same on every backend."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

PEAK_FLOPS = {
    # dense bf16 with fp32 accumulation, from the vendors' data sheets, without sparsity
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA L4": 121e12,
}
"""Peak FLOP/s of one device, by jax's device_kind."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a function computes. flops: of all its dots and convolutions. convolves: whether there are convolutions."""

    flops: int
    convolves: bool


def forward_cost(function: Callable[..., Any], *args: Any) -> Cost:
    """Multiplications and additions (2 for each pair) of all dots and convolutions in `function(*args)`.

    args: arrays or ShapeDtypeStructs; nothing is computed. Both branches of a conditional count as the dearer one; the body of a
    while loop of unknown length counts once.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return Cost(_count(jaxpr), _convolves(jaxpr))


def model_flops_utilization(flops_per_step: float, seconds_per_step: float, devices: int, peak: float) -> float:
    """Model FLOPs of a step / (its seconds x devices x peak FLOP/s of one), as in PaLM (Chowdhery et al. 2022, appendix B).

    Recomputation under rematerialisation does not count as useful work.
    """
    return flops_per_step / (seconds_per_step * devices * peak)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _convolves(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated" or any(map(_convolves, _inner(equation.params)))
        for equation in jaxpr.eqns
    )


def _equation(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // out_features)
    inner = [_count(jaxpr) for jaxpr in _inner(equation.params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * int(equation.params.get("length", 1) if name == "scan" else 1)


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs that an equation calls. A custom derivative rule holds its primal as the first, the rules as functions."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
