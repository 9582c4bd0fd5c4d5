"""How far an artifact's output is from the live one's."""

import dataclasses
import math
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


BLOCK = 1 << 20  # numbers that are compared at once
NEVER = -1e30  # below every logit, and a number
INFINITE = Difference(float("inf"), float("inf"), None, float("inf"))


def difference(found: Any, live: Any) -> Difference:
    """Between two arrays. Shapes that differ and numbers that are not finite are infinitely far.

    Left out is what both mask: the live number is below -1e20, -infinity too, or it is the lowest there is, below -1e4, more than once and
    a thousand times as large as all others; the other is below -1e4 (fp16 has no -1e30). A logit that says "never" is no magnitude that
    others are measured by. Computed in float64, some rows at a time: of a language model both are large.
    """
    found, live = np.asarray(found), np.asarray(live)
    if found.shape != live.shape:
        return INFINITE
    ranked = live.ndim > 1 and live.shape[-1] > 1 and live.size > 0
    rows = [x.reshape(-1, x.shape[-1] if ranked else 1) for x in (found, live)]
    step = max(1, BLOCK // rows[0].shape[1])
    never = _never(rows[1], step)
    most = scale = margin = off_squared = live_squared = same = 0.0
    for start in range(0, len(rows[0]), step):
        ours, theirs = (x[start : start + step].astype(np.float64) for x in reversed(rows))
        masked = (ours <= never) & (theirs < -1e4)
        if not (np.isfinite(ours) & np.isfinite(theirs) | masked).all():
            return INFINITE
        ours, theirs = (np.where(masked, NEVER, x) for x in (ours, theirs))
        if ranked:
            right, taken = (np.argmax(x, axis=1, keepdims=True) for x in (ours, theirs))
            same += np.count_nonzero(right == taken)
            leads = np.take_along_axis(ours, right, 1) - np.take_along_axis(ours, taken, 1)
            margin = max(margin, float(np.max(leads)))
        ours, theirs = (np.where(masked, 0, x) for x in (ours, theirs))
        off = np.abs(theirs - ours)
        most, scale = max(most, float(np.max(off))), max(scale, float(np.max(np.abs(ours))))
        off_squared += float(np.sum(np.square(off)))
        live_squared += float(np.sum(np.square(ours)))
    scale, norm = scale or 1.0, math.sqrt(live_squared) or 1.0
    argmax = same / len(rows[0]) if ranked else None
    return Difference(most / scale, math.sqrt(off_squared) / norm, argmax, margin / scale)


def _never(live: np.ndarray, step: int) -> float:
    """What live numbers are masks up to."""
    lowest = float(np.min(live, initial=0.0))
    if not -1e20 <= lowest < -1e4:
        return -1e20
    parts = [live[start : start + step] for start in range(0, len(live), step)]
    others = max(float(np.max(np.abs(part, dtype=np.float64), where=part != lowest, initial=0.0)) for part in parts)
    often = sum(np.count_nonzero(part == lowest) for part in parts) > 1
    return lowest if often and 0 < 1e3 * others < -lowest else -1e20
