"""A gated linear recurrence over positions, in the form that Mamba-2 has."""

from assay_kernels.linear_scan.api import OP, linear_scan
from assay_kernels.linear_scan.reference import Options, runs_of, step

__all__ = ["OP", "Options", "linear_scan", "runs_of", "step"]
