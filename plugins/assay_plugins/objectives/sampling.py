"""Autoregressive sampling: one compiled program fills a window of tokens, and is called again on a later window when it is full.

With a module that has `init_cache` and `decode`, each token costs one position; any other causal module reads the whole window
for each token. Both give the same text. When the window is full, its newer half becomes the start of the next one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.data.spec import DataSpec, Encoder
from assay.errors import ConfigError, DataError

ROUNDING = 32  # windows shorter than the context have a multiple of this width, so that few programs are compiled


def continuations(
    module: nnx.Module,
    spec: DataSpec,
    prompts: Sequence[str],
    *,
    length: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> list[str]:
    """The text that follows each prompt, at most `length` tokens, up to the first separator.

    A prompt's continuation depends on its place in `prompts` and not on the others. Prompts longer than the context are cut at
    the front. An empty prompt starts from the separator, or from a line's end where the tokenizer has none.
    Raises ConfigError for values out of range or data without a tokenizer, DataError for a prompt that cannot be encoded.
    """
    _check(length, temperature, top_k)
    encoder, context = _text_of(spec)
    if not prompts:
        return []
    starts = [_encoded(encoder, prompt)[-context:] for prompt in prompts]
    given = np.asarray([len(ids) for ids in starts], np.int32)
    tokens = np.zeros((len(prompts), int(given.max()) + length), np.int32)
    for row, ids in zip(tokens, starts, strict=True):
        row[: len(ids)] = ids
    fill = functools.partial(
        _filled,
        *nnx.split(module),
        temperature=np.float32(temperature),
        key=jax.random.key(seed),
        others=tuple(name for name in ("segment_ids", "positions") if name in spec.elements),
        top_k=min(top_k or encoder.vocab_size, encoder.vocab_size),
        vocab=encoder.vocab_size,
    )
    _fill_windows(fill, tokens, given, context)
    ends = [_cut(row[n : n + length], encoder.separator_id) for row, n in zip(tokens, given, strict=True)]
    return [_text_after(encoder, *pair) for pair in zip(starts, ends, strict=True)]


def _check(length: int, temperature: float, top_k: int | None) -> None:
    """Raise ConfigError for values out of range."""
    if length < 1:
        raise ConfigError(f"sampling: length = {length}: must be at least 1")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ConfigError(f"sampling: temperature = {temperature}: must be at least 0 (0 takes the likeliest token)")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"sampling: top_k = {top_k}: must be at least 1, or None for all tokens")


def _text_of(spec: DataSpec) -> tuple[Encoder, int]:
    """The tokenizer, and the tokens in one example."""
    if spec.encoder is None or "inputs" not in spec.elements:
        raise ConfigError(
            "sampling needs a dataset of text, with a tokenizer and `inputs`; "
            f"this one has no {'tokenizer' if spec.encoder is None else '`inputs`'}. Set experiment.sample_every to 0"
        )
    return spec.encoder, spec.elements["inputs"].shape[0]


def _encoded(encoder: Encoder, prompt: str) -> Int[np.ndarray, " tokens"]:
    """The ids of `prompt`, at least one."""
    if prompt:
        return encoder.encode(prompt)
    if encoder.separator_id is not None:
        return np.asarray([encoder.separator_id], np.int32)
    try:
        return encoder.encode("\n")
    except DataError:
        return np.zeros(1, np.int32)


def _fill_windows(fill: Any, tokens: np.ndarray, given: np.ndarray, context: int) -> None:
    """Complete `tokens` (rows, total) in place, of which each row has its first `given` already."""
    rows, total = tokens.shape
    width = min(context, -(-(total - 1) // ROUNDING) * ROUNDING)
    start, done = 0, 1
    while done < total:
        part = tokens[:, start : start + width + 1]
        window = np.zeros((rows, width + 1), np.int32)
        window[:, : part.shape[1]] = part
        known = np.maximum(given, done) - start
        part[:] = np.asarray(fill(window, known, np.int32(start)))[:, : part.shape[1]]
        done = start + width + 1
        start = done - max(1, width // 2)


@functools.partial(jax.jit, static_argnames=("graph", "others", "top_k", "vocab"))
def _filled(
    graph: Any,
    state: Any,
    window: Int[Array, "rows columns"],
    known: Int[Array, " rows"],
    start: Int[Array, ""],
    *,
    temperature: Float[Array, ""],
    key: Array,
    others: tuple[str, ...],
    top_k: int,
    vocab: int,
) -> Int[Array, "rows columns"]:
    """`window` with everything from column `known` of each row on drawn; `start` is its first column's place in the whole text."""
    rows, columns = window.shape
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))

    def step(carry: tuple[Array, Any], column: Array) -> tuple[tuple[Array, Any], None]:
        window, cache = carry
        logits, cache = _next_logits(nnx.merge(graph, state), window, cache, column, others)
        drawn = _draw(logits[:, :vocab].astype(jnp.float32), temperature, top_k, keys, start + column)
        drawn = jnp.where(column + 1 < known, window[:, column + 1], drawn)
        return (window.at[:, column + 1].set(drawn), cache), None

    cache = _cache(nnx.merge(graph, state), state, rows, columns - 1)
    (window, _), _ = jax.lax.scan(step, (window, cache), jnp.arange(columns - 1))
    return window


def _cache(module: Any, state: Any, rows: int, length: int) -> Any:
    """An empty key-value cache in the parameters' dtype, or None for a module that has none."""
    if not (hasattr(module, "init_cache") and hasattr(module, "decode")):
        return None
    dtypes = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return module.init_cache(rows, length, dtypes[0])


def _next_logits(module: Any, window: Array, cache: Any, column: Array, others: tuple[str, ...]) -> tuple[Array, Any]:
    """(logits after `column`, (rows, vocab); the cache with that column's token)."""
    if cache is not None:
        logits, cache = module.decode(window[:, column][:, None], cache, column)
        return logits[:, -1], cache
    inputs = window[:, :-1]
    # A module built for packed documents also reads to which document a token belongs, and its place in it.
    known = {
        "segment_ids": jnp.ones_like(inputs),
        "positions": jnp.broadcast_to(jnp.arange(inputs.shape[1])[None], inputs.shape),
    }
    logits = module({"inputs": inputs, **{name: known[name] for name in others}}, train=False, rngs=None)
    return logits[:, column], None


def _draw(logits: Array, temperature: Array, top_k: int, keys: Array, place: Array) -> Int[Array, " rows"]:
    """One id for each row of `logits` (rows, vocab)."""
    if top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    warm = logits / jnp.where(temperature > 0, temperature, 1.0)
    drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, place), row))(keys, warm)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def _text_after(encoder: Encoder, before: np.ndarray, ids: np.ndarray) -> str:
    """The text that `ids` add to `before`: some tokenizers drop a leading space of what they decode."""
    return encoder.decode(np.concatenate([before, ids]))[len(encoder.decode(before)) :]


def _cut(ids: np.ndarray, separator: int | None) -> np.ndarray:
    """`ids` up to the first separator."""
    ends = np.flatnonzero(ids == separator) if separator is not None else np.empty(0, np.int64)
    return ids[: ends[0]] if ends.size else ids
