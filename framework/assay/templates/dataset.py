"""Chemical analyses of wines from three growers, which come with scikit-learn (Aeberhard and Forina, 1992)."""

import dataclasses
import functools

import numpy as np
from assay.data import cache
from assay.data.arrays import Arrays
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """Examples: `features`, float32 (13,), each with mean 0 and deviation 1, and `label`, int32 (), the grower.

    validation: the number of wines that are held out. seed: of the draw.
    """

    validation: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a number that leaves a split empty."""
        if not 1 <= self.validation < 178:
            raise ValueError(f"validation = {self.validation}: must be from 1 to 177, there are 178 wines")

    def spec(self) -> DataSpec:
        """What models read before they see an example."""
        return DataSpec({"features": ArraySpec((13,), "float32"), "label": ArraySpec((), "int32")}, num_classes=3)

    def source(self, split: str) -> Arrays:
        """The wines of "train" or "validation". Raises DataError for another split."""
        if split not in ("train", "validation"):
            raise DataError(f"there is no split '{split}'; there are train and validation")
        order = np.random.default_rng(self.seed).permutation(178)
        chosen = order[: self.validation] if split == "validation" else order[self.validation :]
        features, label = _wines()
        return Arrays({"features": features[chosen], "label": label[chosen]})

    def fingerprint(self) -> str:
        """A digest of the content and of everything that shapes the examples."""
        features, label = _wines()
        return cache.digest(features.tobytes(), label.tobytes(), self.validation, self.seed)


@functools.cache
def _wines() -> tuple[np.ndarray, np.ndarray]:
    """All features and labels; read on first use, never in the constructor."""
    from sklearn.datasets import load_wine

    found = load_wine()
    scaled = (found.data - found.data.mean(axis=0)) / found.data.std(axis=0)
    return scaled.astype(np.float32), found.target.astype(np.int32)
