"""Cross entropy of a linear head, fused with the head's product: no more logits in memory than those of a chunk of tokens."""

from assay_kernels.linear_cross_entropy.api import OP, linear_cross_entropy
from assay_kernels.linear_cross_entropy.shapes import CrossEntropy

__all__ = ["OP", "CrossEntropy", "linear_cross_entropy"]
