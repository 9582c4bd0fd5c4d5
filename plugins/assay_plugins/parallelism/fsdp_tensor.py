"""Fully sharded data parallelism and tensor parallelism together, on a mesh of up to three dimensions."""

import dataclasses
from collections.abc import Mapping

from assay_plugins.parallelism import fsdp, tensor
from assay_plugins.parallelism.common import checked_mesh

RULES: Mapping[str, tuple[str, ...]] = {**fsdp.RULES, **tensor.TENSOR_RULES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSDPTensor:
    """Matrices divided in both dimensions: width over "fsdp" (as parallelism.fsdp), the other over "tensor" (as parallelism.tensor).

    data: replicas. fsdp: devices that share one copy's width and the batch. tensor: devices that share one layer. One may be -1,
    for all remaining devices.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that cannot be."""
        checked_mesh(self.mesh_axes())

    def mesh_axes(self) -> Mapping[str, int]:
        """Outermost the axis that talks least."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Those of both."""
        return RULES
