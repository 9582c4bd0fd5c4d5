"""Products with weights of four or eight bits: quantised once, read in that form ever after."""

from assay_kernels.quant_matmul.api import OP, quant_matmul
from assay_kernels.quant_matmul.formats import Format, QuantizedWeights, dequantize, quantize
from assay_kernels.quant_matmul.shapes import Options

__all__ = ["OP", "Format", "Options", "QuantizedWeights", "dequantize", "quant_matmul", "quantize"]
