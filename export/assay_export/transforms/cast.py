"""Weights stored in another floating point dtype."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from assay.exported import FLOATS, Exported
from assay_export.transforms.programs import restored_by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cast:
    """Every floating point weight is stored in `dtype` and computed with in its own: rounding to nearest even, with no other change.

    dtype: float16 is exact to 11 bits up to 65504, bfloat16 to 8 bits at any size.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def apply(self, source: Exported) -> Exported:
        """The same programs of the rounded weights. Infinity where float16 is too small for a weight is a note."""
        dtype = jnp.dtype(self.dtype)
        own = _floating(source)
        weights = {path: _cast(w, dtype) if path in own else w for path, w in source.weights.items()}
        large = [path for path in own if not np.isfinite(weights[path].astype(np.float32)).all()]
        notes = [f"cast: {path} has weights that {self.dtype} cannot hold" for path in large]

        def restore(found: dict[str, Any]) -> dict[str, Any]:
            return {path: weight.astype(own[path]) if path in own else weight for path, weight in found.items()}

        return restored_by(source, restore, weights, notes)

    def bounds(self, source: Exported) -> Iterator[tuple[str, np.ndarray]]:
        """Half a unit in the last place, of the largest power of two below a weight; of the smallest number that there is, at least."""
        facts = ml_dtypes.finfo(self.dtype)  # type: ignore[no-untyped-call]
        for path in _floating(source):
            size = np.abs(np.asarray(source.weights[path]).astype(np.float64))
            yield path, np.maximum(size * float(facts.eps), float(facts.smallest_subnormal)) / 2


def _floating(source: Exported) -> dict[str, Any]:
    """Path -> dtype of the floating point weights."""
    return {path: weight.dtype for path, weight in source.weights.items() if str(weight.dtype) in FLOATS}


def _cast(weight: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(weight).astype(dtype)
