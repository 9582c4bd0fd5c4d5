"""scikit-learn's handwritten digits: 1,797 real scans of 8 x 8 pixels, which come with the package (Alpaydin and Kaynak, 1998)."""

import dataclasses
import functools

import numpy as np

from assay.data import cache
from assay.data.arrays import Arrays
from assay.data.corpus import checked_fraction, checked_split
from assay.data.spec import ArraySpec, DataSpec

SPLITS = ("train", "validation")
LEVELS = 16  # pixel values are 0 to 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """Examples: `image`, float32 (8, 8, 1) in [0, 1], and `label`, int32 ().

    validation_fraction: of each digit's scans, held out. seed: of the draw.
    """

    validation_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a fraction that leaves a split empty."""
        checked_fraction("validation_fraction", self.validation_fraction)

    def spec(self) -> DataSpec:
        """One image and its label, of ten classes."""
        return DataSpec({"image": ArraySpec((8, 8, 1), "float32"), "label": ArraySpec((), "int32")}, num_classes=10)

    def source(self, split: str) -> Arrays:
        """The scans of "train" or "validation"."""
        held_out = _held_out(self._labels, self.validation_fraction, self.seed)
        chosen = held_out if checked_split(split, SPLITS) == "validation" else ~held_out
        return Arrays({"image": self._images[chosen], "label": self._labels[chosen]})

    def fingerprint(self) -> str:
        """Digest of the scans and of the division."""
        return cache.digest(self._images.tobytes(), self._labels.tobytes(), self.validation_fraction, self.seed)

    @property
    def _images(self) -> np.ndarray:
        return (_scans()[0][..., None] / LEVELS).astype(np.float32)

    @property
    def _labels(self) -> np.ndarray:
        return _scans()[1].astype(np.int32)


def _held_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """bool, like `labels`: the same share of every class, rounded."""
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = np.zeros(labels.shape, np.bool_)
    for label in np.unique(labels):
        of_class = generator.permutation(np.flatnonzero(labels == label))
        chosen[of_class[: round(len(of_class) * fraction)]] = True
    return chosen


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # a second that other datasets do without

    found = load_digits()
    return found.images, found.target
