"""How far an artifact's output is from the live one's, and how far it may be."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

BOUNDS: Mapping[str, float] = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 5e-3}
"""dtype of the weights -> bound of `Difference.max_abs`."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """max_abs: largest difference, as a part of the largest live magnitude, masks left out. norm: of the difference by the live one's.

    argmax: share of positions at which the largest of the last axis is the same one; None without such an axis.
    """

    max_abs: float
    norm: float
    argmax: float | None

    @property
    def finite(self) -> bool:
        """False where either side was not finite or shapes differed."""
        return bool(np.isfinite(self.max_abs))


def bound_of(dtypes: Any) -> float:
    """The bound for weights of these dtypes: the coarsest one's."""
    return max((BOUNDS.get(str(d), 0.0) for d in dtypes), default=0.0) or BOUNDS["float32"]


def without_masked(found: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with 0 where both are masked: where the live number is below -1e20, and the other below -1e4 (fp16 has no -1e30).

    A logit that says "never" is no magnitude that others are measured by.
    """
    masked = (live < -1e20) & (found < -1e4)
    return np.where(masked, 0, found), np.where(masked, 0, live)


def difference(found: Any, live: Any) -> Difference:
    """Between two arrays. Shapes that differ and numbers that are not finite are infinitely far."""
    found, live = (
        np.asarray(x).astype(np.float64 if np.asarray(x).size < 1 << 24 else np.float32) for x in (found, live)
    )
    if found.shape != live.shape or not (np.isfinite(found).all() and np.isfinite(live).all()):
        return Difference(float("inf"), float("inf"), None)
    found, live = without_masked(found, live)
    off = np.abs(found - live)
    scale, norm = float(np.max(np.abs(live), initial=0.0)), float(np.linalg.norm(live))
    argmax = None
    if live.ndim > 1 and live.shape[-1] > 1:
        argmax = float(np.mean(np.argmax(found, axis=-1) == np.argmax(live, axis=-1)))
    return Difference(
        float(np.max(off, initial=0.0)) / (scale or 1.0), float(np.linalg.norm(off)) / (norm or 1.0), argmax
    )
