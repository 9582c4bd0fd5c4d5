"""Completions drawn from a model inside the training program, with a key-value cache."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.errors import ConfigError


def rollouts(
    module: Any, prompt: Int[Array, "rows before"], length: int, temperature: float, key: Array
) -> Int[Array, "rows length"]:
    """`length` tokens after each prompt, drawn from softmax(logits / temperature). No gradient flows. Traceable.

    Raises ConfigError for a module without `init_cache` and `decode`.
    """
    if not (hasattr(module, "init_cache") and hasattr(module, "decode")):
        raise ConfigError(
            f"{type(module).__name__} cannot generate: choose a model with a cache, such as @model.transformer()"
        )
    graph, state = nnx.split(module)
    state = jax.lax.stop_gradient(state)
    rows, before = prompt.shape
    dtype = next(x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
    cache = nnx.merge(graph, state).init_cache(rows, before + length, dtype)
    logits, cache = nnx.merge(graph, state).decode(prompt, cache, 0)

    def step(carry: tuple[Float[Array, "rows vocab"], Any], place: Array) -> tuple[Any, Int[Array, " rows"]]:
        logits, cache = carry
        token = jax.random.categorical(jax.random.fold_in(key, place), logits.astype(jnp.float32) / temperature)
        logits, cache = nnx.merge(graph, state).decode(token.astype(jnp.int32)[:, None], cache, before + place)
        return (logits[:, -1], cache), token.astype(jnp.int32)

    _, tokens = jax.lax.scan(step, (logits[:, -1], cache), jnp.arange(length))
    return tokens.T
