"""Attention of new tokens over a cache of keys and values in pages: decoding, and prefill behind a prefix."""

from assay_kernels.paged_attention.api import OP, paged_attention
from assay_kernels.paged_attention.shapes import Options, PagedAttention

__all__ = ["OP", "Options", "PagedAttention", "paged_attention"]
