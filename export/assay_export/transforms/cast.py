"""Weights stored in another floating point dtype."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from assay.exported import Exported
from assay_export.transforms.matrices import FLOATS
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
        own = {path: weight.dtype for path, weight in source.weights.items() if str(weight.dtype) in FLOATS}
        weights = {path: _cast(w, dtype) if path in own else w for path, w in source.weights.items()}
        large = [path for path in own if not np.isfinite(weights[path].astype(np.float32)).all()]
        notes = [f"cast: {path} has weights that {self.dtype} cannot hold" for path in large]

        def restore(found: dict[str, Any]) -> dict[str, Any]:
            return {path: weight.astype(own[path]) if path in own else weight for path, weight in found.items()}

        return restored_by(source, restore, weights, notes)


def _cast(weight: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(weight).astype(dtype)
