"""x"""
from assay_export.onnx.specs import Input
__all__ = ["Input"]
