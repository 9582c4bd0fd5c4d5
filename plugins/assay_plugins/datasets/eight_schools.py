"""The eight schools: effects of coaching on admission tests in eight schools, with their standard errors (Rubin 1981)."""

import dataclasses

import numpy as np

from assay.data import cache
from assay.data.arrays import Arrays
from assay.data.corpus import checked_split
from assay.data.spec import ArraySpec, DataSpec

# Gelman et al. 2013, Bayesian Data Analysis, table 5.2.
EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EightSchools:
    """Examples: `effect` and `error`, float32 (), in points of the test, and `group`, float32 (8,), one-hot. One split, "train"."""

    def spec(self) -> DataSpec:
        """One school."""
        scalar = ArraySpec((), "float32")
        return DataSpec({"effect": scalar, "error": scalar, "group": ArraySpec((len(EFFECTS),), "float32")})

    def source(self, split: str) -> Arrays:
        """The eight schools; "train" is all there is."""
        checked_split(split, ("train",))
        effects, errors = np.asarray(EFFECTS, np.float32), np.asarray(ERRORS, np.float32)
        return Arrays({"effect": effects, "error": errors, "group": np.eye(len(effects), dtype=np.float32)})

    def fingerprint(self) -> str:
        """Digest of the table."""
        return cache.digest("eight_schools", *EFFECTS, *ERRORS)
