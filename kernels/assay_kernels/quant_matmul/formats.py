"""How weights of four and eight bits are stored, what they stand for, and how they are made.

Per channel (`group` is None) the values are an array (K, N) of int4, int8 or float8_e4m3fn, which XLA multiplies without a copy, and the
scales are fp32 (N,). With groups of K the values are packed into words of 32 bits in the order in which the tensor cores take them, and
the scales are bf16 (groups, N).

A row of packed words is 16 words of one output channel: 128 consecutive k of four bits, or 64 of eight. In it word 4 q + t has the k of
the thread q of four, for the steps of t: bits  0-3  4-7 ... of four bits are k = 32 t + 2 q + (0, 8, 16, 24), bits 16-19 ... the same + 1;
bytes of eight bits are k = 16 t + 2 q + (0, 1, 8, 9). So each thread reads 16 bytes at once, and finds its operands by masks and shifts.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

Kind = Literal["int", "fp8"]
WORDS = 16  # of a row of packed values
STEP = 256  # packed values are filled up with zeros to a multiple of so many k
FP8_MAX = 448.0


@dataclasses.dataclass(frozen=True)
class Format:
    """What is static of quantised weights. bits: of a value. group: values of one channel that share a scale; None for all of them.

    shape: (K, N), of the weights.
    """

    bits: int
    group: int | None
    kind: Kind
    shape: tuple[int, int]

    @property
    def row(self) -> int:
        """How many k a row of packed words has."""
        return WORDS * 32 // self.bits

    @property
    def largest(self) -> float:
        """The largest value; -largest is the least that quantize makes."""
        return FP8_MAX if self.kind == "fp8" else 2.0 ** (self.bits - 1) - 1

    @property
    def dtype(self) -> Any:
        """Of values that are not packed."""
        return jnp.float8_e4m3fn if self.kind == "fp8" else jnp.int8 if self.bits == 8 else jnp.int4

    def __str__(self) -> str:
        name = "fp8" if self.kind == "fp8" else f"int{self.bits}"
        return f"{name} for each channel" if self.group is None else f"{name} in groups of {self.group}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeights:
    """A pytree: arrays `values` and `scales`, and a static `format`. See the module for what they hold."""

    values: jax.Array
    scales: jax.Array
    format: Format = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.format.shape


def quantize(w: jax.Array, *, bits: int = 8, group: int | None = None, kind: Kind = "int") -> QuantizedWeights:
    """Symmetric quantisation of w (K, N): value = w / scale, rounded to nearest even; the largest of a group is +-127, +-7 or 448.

    bits: 8 or 4. group: so many consecutive k of a channel share a scale, a divisor of K; None for one scale a channel. kind: "int", or
    "fp8" (e4m3, eight bits). An integer is off by half a scale at most (scales of groups are rounded to bf16 before they are used), fp8 by
    a sixteenth of the value, or 2^-10 scales. A group of zeros has scale 1. Raises TypeError and ValueError for other inputs.
    """
    _check(w, bits, group, kind)
    rows, columns = w.shape
    form = Format(bits, group, kind, (rows, columns))
    wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    grouped = wide.reshape(-1, group or rows, columns)
    scales = jnp.max(jnp.abs(grouped), axis=1) / form.largest
    scales = jnp.where(scales == 0.0, 1.0, scales).astype(jnp.float32 if group is None else jnp.bfloat16)
    ratio = (grouped / scales.astype(wide.dtype)[:, None]).reshape(rows, columns)
    limited = jnp.clip(ratio, -form.largest, form.largest)
    if group is None:
        values = (limited if kind == "fp8" else jnp.round(limited)).astype(form.dtype)
        return QuantizedWeights(values, scales[0], form)
    codes = _fp8_codes(limited) if kind == "fp8" else jnp.round(limited).astype(jnp.int32)
    return QuantizedWeights(packed(codes, form), scales, form)


def dequantize(weights: QuantizedWeights, dtype: Any = jnp.float32) -> jax.Array:
    """(K, N): what the quantised weights stand for, values times scales in at least fp32, then rounded to dtype."""
    wide = jnp.promote_types(dtype, jnp.float32)
    form, scales = weights.format, weights.scales.astype(wide)
    if form.group is None:
        return (weights.values.astype(wide) * scales[None]).astype(dtype)
    values = unpacked(weights.values, form).astype(wide).reshape(-1, form.group, form.shape[1])
    return (values * scales[:, None]).reshape(form.shape).astype(dtype)


def packed(codes: jax.Array, form: Format) -> jax.Array:
    """int32 (K / row, N, 16) of codes (K, N), int32: integers, or the bytes of fp8."""
    rows, columns = codes.shape
    codes = jnp.pad(codes, ((0, -rows % STEP), (0, 0)))
    codes = (codes + 8 if form.bits == 4 else codes) & (2**form.bits - 1)
    found = jnp.zeros((codes.shape[0] // form.row, columns, 4, 4), jnp.int32)  # q, t
    parts = _parts(codes, form)
    for shift, part in parts:
        found = found | (part << shift)
    return found.reshape(-1, columns, WORDS)


def unpacked(words: jax.Array, form: Format) -> jax.Array:
    """(K, N) fp32 of packed words (K / row, N, 16), without what fills K up."""
    return jnp.moveaxis(unpacked_rows(words, form), 1, 2).reshape(-1, words.shape[1])[: form.shape[0]]


def unpacked_rows(words: jax.Array, form: Format) -> jax.Array:
    """(..., row) fp32 of packed rows (..., 16), in the order of k."""
    of_threads = words.reshape(*words.shape[:-1], 4, 4)  # q, t
    pairs = 4 if form.bits == 4 else 2
    found = []
    for e in (0, 1):
        shifts = [_shift(form, p, e) for p in range(pairs)]
        codes = jnp.stack([(of_threads >> s) & (2**form.bits - 1) for s in shifts], axis=-1)  # q, t, p
        found.append(_value(codes, form))
    together = jnp.stack(found, axis=-1)  # ..., q, t, p, e
    ordered = jnp.moveaxis(together, -4, -2)  # ..., t, p, q, e
    return ordered.reshape(*words.shape[:-1], form.row)


def _shift(form: Format, p: int, e: int) -> int:
    """Where a word has the code of its pair p (8 p further on in k), element e."""
    return 4 * p + 16 * e if form.bits == 4 else 16 * p + 8 * e


def _parts(codes: jax.Array, form: Format) -> list[tuple[int, jax.Array]]:
    """(shift, the codes (K / row, N, q, t) that belong there)."""
    pairs = 4 if form.bits == 4 else 2
    k = codes.reshape(-1, 4, pairs, 4, 2, codes.shape[1])  # row, t, p, q, e, N
    ordered = jnp.transpose(k, (0, 5, 3, 1, 2, 4))  # row, N, q, t, p, e
    return [(_shift(form, p, e), ordered[..., p, e]) for p in range(pairs) for e in (0, 1)]


def _value(codes: jax.Array, form: Format) -> jax.Array:
    if form.kind == "fp8":
        return jax.lax.bitcast_convert_type(codes.astype(jnp.uint8), jnp.float8_e4m3fn).astype(jnp.float32)
    half = 2 ** (form.bits - 1)
    signed = codes - half if form.bits == 4 else ((codes + half) & 255) - half
    return signed.astype(jnp.float32)


def _fp8_codes(values: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(values.astype(jnp.float8_e4m3fn), jnp.uint8).astype(jnp.int32)


def _check(w: jax.Array, bits: int, group: int | None, kind: str) -> None:
    if w.ndim != 2 or not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(f"w is {w.dtype} {w.shape}: must be floating point (K, N)")
    if kind not in ("int", "fp8") or bits not in (4, 8) or (kind == "fp8" and bits == 4):
        raise ValueError(f"kind = {kind!r} with bits = {bits}: there are int of 8 or 4 bits, and fp8 of 8")
    if 0 in w.shape:
        raise ValueError(f"w {w.shape} has no elements")
    if group is not None and (group < 1 or w.shape[0] % group):
        raise ValueError(f"group = {group}: must divide w's {w.shape[0]} rows")
