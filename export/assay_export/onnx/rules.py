"""The rules of assay_export.onnx.rewrite, by primitive."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from assay_export.onnx.rewrite import Unsupported, evaluate, where

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


def scan(equation: Any, operands: list[Any]) -> list[Any]:
    """The same scan of a rewritten body."""
    p = equation.params
    consts, carry = operands[: p["num_consts"]], operands[p["num_consts"] :][: p["num_carry"]]
    xs = operands[p["num_consts"] + p["num_carry"] :]

    def body(carry: Any, x: Any) -> Any:
        found = evaluate(p["jaxpr"].jaxpr, p["jaxpr"].consts, *consts, *carry, *x)
        return found[: p["num_carry"]], found[p["num_carry"] :]

    last, ys = lax.scan(body, carry, xs, length=p["length"], reverse=p["reverse"])
    return [*last, *ys]


def while_loop(equation: Any, operands: list[Any]) -> list[Any]:
    """The same loop of a rewritten condition and body."""
    p = equation.params
    test, body = p["cond_jaxpr"], p["body_jaxpr"]
    of_test, of_body = operands[: p["cond_nconsts"]], operands[p["cond_nconsts"] :][: p["body_nconsts"]]
    return lax.while_loop(
        lambda s: evaluate(test.jaxpr, test.consts, *of_test, *s)[0],
        lambda s: evaluate(body.jaxpr, body.consts, *of_body, *s),
        operands[p["cond_nconsts"] + p["body_nconsts"] :],
    )


def refuse(reason: str) -> Rule:
    """A rule for what ONNX cannot say."""

    def rule(equation: Any, operands: list[Any]) -> None:
        name = equation.primitive.name
        raise Unsupported(name, f"operation {name} ({where(equation)}): {reason}")

    return rule


CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2", "remat")
RANDOM = ("random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split", "threefry2x32", "rng_bit_generator", "rng_uniform", "random_gamma")
RULES: dict[str, Rule] = {
    **dict.fromkeys(CALLS, inline),
    **dict.fromkeys(RANDOM, refuse("ONNX has no reproducible random numbers; draw them outside and pass them in")),
    "cond": cond,
    "scan": scan,
    "while": while_loop,
}
