"""Accelerator kernels of Assay. Depends on jax alone and imports nothing else of Assay.

Each op is a package of its own: `from assay_kernels.linear_cross_entropy import linear_cross_entropy`. This module is what all ops share.
"""

from assay_kernels.op import Further, ImplementationError, Op, counting, force, op_of, ops, problem_of, using
from assay_kernels.record import Audit, Choice, audit, disagreements, made_before, recording
from assay_kernels.target import H100, H200, Target, current_target, for_target

__all__ = [
    "H100",
    "H200",
    "Audit",
    "Choice",
    "Further",
    "ImplementationError",
    "Op",
    "Target",
    "audit",
    "counting",
    "current_target",
    "disagreements",
    "for_target",
    "force",
    "made_before",
    "op_of",
    "ops",
    "problem_of",
    "recording",
    "using",
]
