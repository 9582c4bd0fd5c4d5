"""RMSNorm, alone or with the residual connection before it."""

from assay_kernels.rms_norm.api import OP, Options, rms_norm

__all__ = ["OP", "Options", "rms_norm"]
