"""The matrix products of a mixture of experts: rows that are sorted by group, each times its group's matrix."""

from assay_kernels.grouped_matmul.api import OP, grouped_matmul
from assay_kernels.grouped_matmul.shapes import Options

__all__ = ["OP", "Options", "grouped_matmul"]
