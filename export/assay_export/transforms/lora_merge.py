"""Adapters merged into the weights that they adapt."""

import dataclasses

import numpy as np

from assay.errors import ExportError
from assay.exported import Exported, as_stored
from assay.kinds import Adapted
from assay_export.programs import remade


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAMerge:
    """The adapted model without its adapters: each kernel W becomes W + alpha / rank A B (Hu et al. 2022, arXiv:2106.09685, section 4.1).

    For model.lora, and any model that has `merged` (see assay.kinds.Adapted).
    """

    def apply(self, source: Exported) -> Exported:
        """The programs of the model that was adapted. Raises ExportError for a model without adapters."""
        if source.model is None:
            raise ExportError(
                "lora_merge: an artifact does not hold its model; merge with `assay export RUN --transform`"
            )
        if not isinstance(source.model, Adapted):
            raise ExportError(
                f"lora_merge: {type(source.model).__qualname__} has no adapters; it is for the run of a model.lora"
            )
        if source.restore is not as_stored:
            raise ExportError(
                "lora_merge: the weights are stored in another form already; name lora_merge before what stores them so"
            )
        merged = source.model.merged({path: np.asarray(weight) for path, weight in source.weights.items()})
        return remade(source, source.model.model, merged)

    def bounds(self, source: Exported) -> None:
        """It computes the same."""
