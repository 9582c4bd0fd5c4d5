"""What quant_matmul is given, and what is refused before any work."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.quant_matmul.formats import STEP, WORDS, Format


@dataclasses.dataclass(frozen=True)
class Options:
    """The static part of a call: the weights' format, and the result's dtype by name, x's without."""

    format: Format
    out_dtype: str | None = None


def check(x: Any, values: jax.Array, scales: jax.Array, form: Format) -> None:
    """Raise TypeError or ValueError, in words, for inputs that are not as the op's documentation says."""
    rows, columns = form.shape
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        raise TypeError(f"x is {x.dtype}: must be bf16, fp16, fp32 or fp64")
    if x.ndim < 1 or x.shape[-1] != rows:
        raise ValueError(f"x {x.shape} and weights {form.shape}: x must be (*items, {rows})")
    if values.dtype != (form.dtype if form.group is None else jnp.int32):
        raise TypeError(f"values are {values.dtype}, and {form} has {form.dtype if form.group is None else 'int32'}")
    expected: tuple[tuple[int, ...], tuple[int, ...]] = (rows, columns), (columns,)
    if form.group is not None:
        padded = -(-rows // STEP) * STEP
        expected = (padded // form.row, columns, WORDS), (rows // form.group, columns)
    if (values.shape, scales.shape) != expected:
        raise ValueError(
            f"values {values.shape} and scales {scales.shape} of weights {form.shape}, {form}: must be {expected}"
        )
