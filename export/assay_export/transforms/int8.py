"""Weights of eight bits, with a scale for each output."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from assay.exported import Exported
from assay_export.transforms.quantised import bounds, quantised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8:
    """Kernels become int8 with an fp32 scale for each output channel: symmetric, rounded to nearest even, off by half a scale at most.

    Activations stay as they are; products are computed with values times scales. skip: parts that stay, such as 'head' or 'mlp/down'.
    """

    skip: tuple[str, ...] = ()

    def apply(self, source: Exported) -> Exported:
        """The same programs of the quantised weights. Raises ExportError where there is no kernel."""
        return quantised(source, bits=8, group=None, skip=self.skip)

    def bounds(self, source: Exported) -> Iterator[tuple[str, np.ndarray]]:
        """Half a step of each output."""
        return bounds(source, bits=8, group=None, skip=self.skip)
