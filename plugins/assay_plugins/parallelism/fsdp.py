"""Fully sharded data parallelism: parameters, gradients and optimizer state divided over the devices that share the batch."""

import dataclasses
from collections.abc import Mapping

from assay_plugins.parallelism.common import checked_mesh

# One dimension of every large parameter: the width in transformers, the outputs of convolutions, the inputs of plain layers.
PARAMETER_RULES: Mapping[str, tuple[str, ...]] = {"embed": ("fsdp",), "conv_out": ("fsdp",), "features": ("fsdp",)}
RULES: Mapping[str, tuple[str, ...]] = {"batch": ("data", "fsdp"), **PARAMETER_RULES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSDP:
    """The batch divided over "data" and "fsdp"; each parameter and its optimizer state over "fsdp", whole only while in use.

    Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), stage 3; the collectives are placed by the compiler (Xu et al. 2021,
    GSPMD, arXiv:2105.04663). With data > 1 the sharded copies are replicated (hybrid sharding).

    fsdp: devices that share one copy of the parameters, or -1 for all remaining. data: number of such copies.
    """

    fsdp: int = -1
    data: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that cannot be."""
        checked_mesh(self.mesh_axes())

    def mesh_axes(self) -> Mapping[str, int]:
        """Copies outermost, so that the devices of one copy are neighbours."""
        return {"data": self.data, "fsdp": self.fsdp}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """The batch over both axes, one dimension of each parameter over "fsdp"."""
        return RULES
