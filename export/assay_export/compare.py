"""How far an artifact's output is from the live one's."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
    """max_abs: largest difference, as a part of the largest live magnitude, masks left out. norm: of the difference by the live one's.

    argmax: share of positions at which the largest of the last axis is the same one; None without such an axis. margin: where it is not,
    how much larger the live one's largest is than what the other took for it, at most; as a part of the largest live magnitude too.
    """

    max_abs: float
    norm: float
    argmax: float | None
    margin: float = 0.0

    @property
    def finite(self) -> bool:
        """False where either side was not finite or shapes differed."""
        return bool(np.isfinite(self.max_abs))

    def within(self, bound: float) -> bool:
        """Whether all of it is: an argmax may be another one where the two are nearly as large."""
        return max(self.max_abs, self.norm, self.margin) <= bound


INFINITE = Difference(float("inf"), float("inf"), None, float("inf"))


def _without_masked(found: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
        return INFINITE
    argmax, margin = _ranks(found, live)
    found, live = _without_masked(found, live)
    off = np.abs(found - live)
    scale, norm = float(np.max(np.abs(live), initial=0.0)) or 1.0, float(np.linalg.norm(live)) or 1.0
    return Difference(
        float(np.max(off, initial=0.0)) / scale, float(np.linalg.norm(off)) / norm, argmax, margin / scale
    )


def _ranks(found: np.ndarray, live: np.ndarray) -> tuple[float | None, float]:
    """(share of positions of the same argmax, the largest live margin of the others)."""
    if live.ndim < 2 or live.shape[-1] < 2 or not live.size:
        return None, 0.0
    taken, right = np.argmax(found, axis=-1, keepdims=True), np.argmax(live, axis=-1, keepdims=True)
    margins = np.take_along_axis(live, right, -1) - np.take_along_axis(live, taken, -1)
    return float(np.mean(taken == right)), float(np.max(margins))
