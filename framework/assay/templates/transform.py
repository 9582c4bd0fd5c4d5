"""Rounds weights to few significant bits, so that they compress well."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from assay.exported import Exported


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """Every float32 weight keeps its sign, its exponent and `bits` bits of its fraction; the others become 0.

    bits: of the 23 that a float32 has.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError for a number of bits that a float32 does not have."""
        if not 0 <= self.bits <= 23:
            raise ValueError(f"bits = {self.bits}: must be from 0 to 23")

    def apply(self, source: Exported) -> Exported:
        """The same programs of the rounded weights."""
        mask = np.uint32(0xFFFFFFFF) << np.uint32(23 - self.bits)
        weights = {path: np.asarray(weight) for path, weight in source.weights.items()}
        rounded = {
            path: (weight.view(np.uint32) & mask).view(np.float32)
            for path, weight in weights.items()
            if weight.dtype == np.float32
        }
        return dataclasses.replace(source, weights={**weights, **rounded})

    def bounds(self, source: Exported) -> Iterator[tuple[str, np.ndarray]]:
        """A unit of the last bit that stays; of the smallest normal number, at least."""
        for path, weight in source.weights.items():
            if weight.dtype == np.float32:
                yield path, np.maximum(np.abs(weight), np.finfo(np.float32).tiny) * np.float32(2.0**-self.bits)
