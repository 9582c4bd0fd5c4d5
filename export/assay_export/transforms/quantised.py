"""Weight-only quantisation: kernels of four or eight bits beside their scales, multiplied out where a program reads them.

The quantiser, and how values are stored, are those of assay_kernels.quant_matmul. A kernel at PATH becomes PATH/values and PATH/scales.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from assay.errors import ExportError
from assay.exported import Exported
from assay_export.transforms.matrices import Matrix, matrices
from assay_export.transforms.programs import restored_by
from assay_kernels.quant_matmul import Format, QuantizedWeights, dequantize, quantize

VALUES, SCALES = "values", "scales"


def quantised(source: Exported, *, bits: int, group: int | None, skip: tuple[str, ...]) -> Exported:
    """`source` with every kernel quantised; those whose inputs `group` does not divide stay, with a note.

    Raises ExportError where that leaves none.
    """
    found, fitting = matrices(source, skip), _fitting(source, group, skip)
    if not fitting:
        sizes = sorted({m.rows for m in found.values()})
        raise ExportError(
            f"no kernel can be quantised: {f'group = {group} divides none of their inputs, {sizes}' if sizes else 'there is none'}"
        )
    weights: dict[str, Any] = {path: w for path, w in source.weights.items() if path not in fitting}
    formats = {}
    for path, matrix in fitting.items():
        weights[f"{path}/{VALUES}"], weights[f"{path}/{SCALES}"], form = _stored(
            source.weights[path], matrix, bits, group
        )
        formats[path] = (form, matrix, source.weights[path].dtype)

    def restore(stored: dict[str, Any]) -> dict[str, Any]:
        kept = {path: w for path, w in stored.items() if path.rsplit("/", 1)[0] not in formats}
        return kept | {path: _restored(stored, path, *facts) for path, facts in formats.items()}

    notes = [
        f"int{bits}: {path} stays as it is, group = {group} does not divide its {found[path].rows} inputs"
        for path in found.keys() - fitting.keys()
    ]
    return restored_by(source, restore, weights, sorted(notes))


def bounds(
    source: Exported, *, bits: int, group: int | None, skip: tuple[str, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """(path, half a step: the largest of a group by twice the largest integer) of every kernel that `quantised` changes.

    Scales of groups are rounded to bfloat16 first, and the result to the kernel's dtype.
    """
    for path, matrix in _fitting(source, group, skip).items():
        weight = np.asarray(source.weights[path])
        flat = np.abs(matrix.flat(weight).astype(np.float32))
        grouped = flat.reshape(len(flat), -1, group or matrix.rows, flat.shape[-1])
        largest = np.broadcast_to(grouped.max(axis=2, keepdims=True), grouped.shape).reshape(weight.shape)
        steps = 0.5 / (2 ** (bits - 1) - 1)
        yield path, largest * ((1 + _roundoff(jnp.bfloat16)) * steps + 2 * _roundoff(weight.dtype))


def _roundoff(dtype: Any) -> float:
    return float(ml_dtypes.finfo(dtype).eps) / 2  # type: ignore[no-untyped-call]


def _fitting(source: Exported, group: int | None, skip: tuple[str, ...]) -> dict[str, Matrix]:
    return {path: m for path, m in matrices(source, skip).items() if group is None or m.rows % group == 0}


def _stored(weight: np.ndarray, matrix: Matrix, bits: int, group: int | None) -> tuple[np.ndarray, np.ndarray, Format]:
    """(values, scales, format), the first two with the stack as their first dimension."""
    parts = [quantize(jnp.asarray(w), bits=bits, group=group) for w in matrix.flat(np.asarray(weight))]
    return np.stack([p.values for p in parts]), np.stack([p.scales for p in parts]), parts[0].format


def _restored(stored: dict[str, Any], path: str, form: Format, matrix: Matrix, dtype: Any) -> jax.Array:
    """The kernel that the quantised one stands for."""
    values, scales = (jnp.asarray(stored[f"{path}/{part}"]) for part in (VALUES, SCALES))
    parts = [dequantize(QuantizedWeights(v, s, form), dtype) for v, s in zip(values, scales, strict=True)]
    return jnp.stack(parts).reshape(matrix.shape)
