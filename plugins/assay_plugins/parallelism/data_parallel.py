"""Data parallelism: every device holds the whole model and works on its part of the batch."""

import dataclasses
from collections.abc import Mapping

from assay_plugins.parallelism.common import checked_mesh

RULES: Mapping[str, tuple[str, ...]] = {"batch": ("data",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataParallel:
    """The batch divided over the mesh axis "data"; parameters and optimizer state replicated, gradients summed over it.

    data: number of devices, or -1 for all.
    """

    data: int = -1

    def __post_init__(self) -> None:
        """Raise ValueError for a size that cannot be."""
        checked_mesh(self.mesh_axes())

    def mesh_axes(self) -> Mapping[str, int]:
        """One axis."""
        return {"data": self.data}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """The batch only."""
        return RULES
