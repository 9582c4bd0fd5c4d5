"""Weight-only quantisation: kernels of four or eight bits beside their scales, multiplied out where a program reads them.

The quantiser, and how values are stored, are those of assay_kernels.quant_matmul. A kernel at PATH becomes PATH/values and PATH/scales.
"""

from typing import Any

import jax
import jax.numpy as jnp
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
    found = matrices(source, skip)
    fitting = {path: m for path, m in found.items() if group is None or m.rows % group == 0}
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


def _stored(weight: np.ndarray, matrix: Matrix, bits: int, group: int | None) -> tuple[np.ndarray, np.ndarray, Format]:
    """(values, scales, format), the first two with the stack as their first dimension."""
    parts = [quantize(jnp.asarray(w), bits=bits, group=group) for w in matrix.flat(np.asarray(weight))]
    return np.stack([p.values for p in parts]), np.stack([p.scales for p in parts]), parts[0].format


def _restored(stored: dict[str, Any], path: str, form: Format, matrix: Matrix, dtype: Any) -> jax.Array:
    """The kernel that the quantised one stands for."""
    values, scales = (jnp.asarray(stored[f"{path}/{part}"]) for part in (VALUES, SCALES))
    parts = [dequantize(QuantizedWeights(v, s, form), dtype) for v, s in zip(values, scales, strict=True)]
    return jnp.stack(parts).reshape(matrix.shape)
