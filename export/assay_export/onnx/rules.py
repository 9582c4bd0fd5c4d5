"""The rules of assay_export.onnx.rewrite, by primitive."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from assay_export.onnx import arithmetic, indexing, windows
from assay_export.onnx.rewrite import Unsupported, evaluate, retyped_shape, rewritten, where

Rule = Callable[[Any, list[Any]], list[Any] | None]
"""(equation, operands) -> results, or None to leave the equation as it is."""


def inline(equation: Any, operands: list[Any]) -> list[Any]:
    """A call: its body in place."""
    inner = next(equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params)
    return evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), *operands)


def cond(equation: Any, operands: list[Any]) -> list[Any]:
    """lax.switch: one lax.cond within another, each of two branches."""
    index, *rest = operands
    branches = equation.params["branches"]

    def choose(first: int, *arguments: Any) -> list[Any]:
        this = branches[first]
        if first == len(branches) - 1:
            return evaluate(this.jaxpr, this.consts, *arguments)
        return lax.cond(
            index <= first,
            lambda *a: evaluate(this.jaxpr, this.consts, *a),
            lambda *a: choose(first + 1, *a),
            *arguments,
        )

    return choose(0, *rest)


def with_bodies(*names: str) -> Rule:
    """The same loop of rewritten bodies, the parameters of these names."""

    def rule(equation: Any, operands: list[Any]) -> list[Any]:
        bodies = {}
        for name in names:
            body = equation.params[name]
            bodies[name] = jax.make_jaxpr(rewritten(body))(*(retyped_shape(v.aval) for v in body.jaxpr.invars))
        return list(equation.primitive.bind(*operands, **{**equation.params, **bodies}))

    return rule


def refuse(reason: str) -> Rule:
    """A rule for what ONNX cannot say."""

    def rule(equation: Any, operands: list[Any]) -> None:
        name = equation.primitive.name
        raise Unsupported(name, f"operation {name} ({where(equation)}): {reason}")

    return rule


CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat2",
    "remat",
)
RANDOM = (
    "random_bits",
    "random_seed",
    "random_wrap",
    "random_unwrap",
    "random_fold_in",
    "random_split",
    "threefry2x32",
    "rng_bit_generator",
    "rng_uniform",
    "random_gamma",
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(CALLS, inline),
    **dict.fromkeys(RANDOM, refuse("ONNX has no reproducible random numbers; draw them outside and pass them in")),
    "cond": cond,
    "scan": with_bodies("jaxpr"),
    "while": with_bodies("cond_jaxpr", "body_jaxpr"),
    "pad": windows.pad,
    "conv_general_dilated": windows.convolution,
    "reduce_window_max": windows.pooling,
    "reduce_window_sum": windows.pooling,
    "select_n": arithmetic.select,
    **dict.fromkeys(indexing.METHODS, indexing.scatter),
    "gather": indexing.gather,
    "rem": arithmetic.remainder,
    "shift_left": arithmetic.shift,
    "shift_right_arithmetic": arithmetic.shift,
    "sort": arithmetic.sort,
    "dot_general": arithmetic.product,
    "ragged_dot_general": arithmetic.grouped_product,
}
