"""Sepals of 150 irises of three species, measured by Anderson, which come with scikit-learn (Anderson 1935; Fisher 1936)."""

import dataclasses
import functools

import numpy as np

from assay.data import cache
from assay.data.arrays import Arrays
from assay.data.corpus import checked_split
from assay.data.spec import ArraySpec, DataSpec

SPECIES = ("setosa", "versicolor", "virginica")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IrisSepals:
    """A regression with groups; the values are those of R's iris, not those of the UCI repository, which has two rows wrong.

    Examples: `target`, float32 (), length of a sepal in cm; `features`, float32 (1,), its width in cm; `group`, float32 (3,),
    one-hot species: setosa, versicolor, virginica.
    validation_fraction: of the flowers, held out; 0 for none, and no split "validation". seed: of the draw.
    """

    validation_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a fraction that leaves nothing to train on."""
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ValueError(f"validation_fraction = {self.validation_fraction}: must be at least 0 and less than 1")

    def spec(self) -> DataSpec:
        """One flower."""
        shapes: dict[str, tuple[int, ...]] = {"target": (), "features": (1,), "group": (len(SPECIES),)}
        return DataSpec({name: ArraySpec(shape, "float32") for name, shape in shapes.items()})

    def source(self, split: str) -> Arrays:
        """The flowers of "train" or, where some are held out, "validation"."""
        sepals, species = _flowers()
        generator = np.random.Generator(np.random.PCG64(self.seed))
        held_out = np.zeros(len(species), np.bool_)
        held_out[generator.permutation(len(held_out))[: round(len(held_out) * self.validation_fraction)]] = True
        splits = ("train", "validation") if held_out.any() else ("train",)
        chosen = held_out if checked_split(split, splits) == "validation" else ~held_out
        length, width = sepals[chosen].T.astype(np.float32)
        group = np.eye(len(SPECIES), dtype=np.float32)[species[chosen]]
        return Arrays({"target": length, "features": width[:, None], "group": group})

    def fingerprint(self) -> str:
        """Digest of the measurements and of the division."""
        sepals, species = _flowers()
        return cache.digest(sepals.tobytes(), species.tobytes(), self.validation_fraction, self.seed)


@functools.cache
def _flowers() -> tuple[np.ndarray, np.ndarray]:
    """Length and width of each sepal, float64 (150, 2), and its species, int64 (150,)."""
    from sklearn.datasets import load_iris  # a second that other datasets do without

    found = load_iris()
    return found.data[:, :2], found.target.astype(np.int64)
