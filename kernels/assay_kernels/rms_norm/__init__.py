"""RMSNorm, alone or with the residual connection before it."""

from assay_kernels.rms_norm.api import OP, rms_norm
from assay_kernels.rms_norm.reference import Options, normalised

__all__ = ["OP", "Options", "normalised", "rms_norm"]
