"""Weights of four bits, with a scale for each group of inputs of an output."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from assay.exported import Exported
from assay_export.transforms.quantised import bounds, quantised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int4:
    """Kernels become int4, eight to a word, with a bf16 scale for each `group` inputs of an output channel.

    Values are -7 to 7, rounded to nearest even. The words are in the order of assay_kernels.quant_matmul, whose rows are filled up to 256
    inputs: kernels with fewer gain less.

    group: inputs that share a scale; kernels whose inputs it does not divide stay. skip: parts that stay, such as 'head' or 'mlp/down'.
    """

    group: int = 128
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for an empty group."""
        if self.group < 1:
            raise ValueError(f"group = {self.group}: must be at least 1")

    def apply(self, source: Exported) -> Exported:
        """The same programs of the quantised weights. Raises ExportError where no kernel can be quantised."""
        return quantised(source, bits=4, group=self.group, skip=self.skip)

    def bounds(self, source: Exported) -> Iterator[tuple[str, np.ndarray]]:
        """Half a step of each group."""
        return bounds(source, bits=4, group=self.group, skip=self.skip)
