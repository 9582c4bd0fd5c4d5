"""Examples that lie in memory as arrays."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A Source over named arrays (examples, *shape); example i is row i of each."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[index] for name, values in self.arrays.items()}

    def gather(self, indices: Int64[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """The rows at `indices`."""
        return {name: values[indices] for name, values in self.arrays.items()}
