"""Multi-head attention: grouped keys, causal masks, windows, packed segments, soft-caps and biases."""

from assay_kernels.attention.api import OP, attention
from assay_kernels.attention.shapes import Attention, Options

__all__ = ["OP", "Attention", "Options", "attention"]
