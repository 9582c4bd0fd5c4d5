"""Assay's transforms do what every transform must."""

from typing import Any

import numpy as np

from assay.checkpoint.checkpoints import dotted
from assay.data.spec import ArraySpec, DataSpec
from assay.exported import Dim, Exported, Program, Signature, Tensor
from assay.network import make_network
from assay.testing import TransformKit
from assay_export.programs import module_of
from assay_export.transforms.cast import Cast
from assay_export.transforms.int4 import Int4
from assay_export.transforms.int8 import Int8
from assay_export.transforms.lora_merge import LoRAMerge
from assay_export.transforms.prune import Prune
from assay_plugins.models.lora import LoRA
from assay_plugins.models.transformer import Transformer


class TestCast(TransformKit):
    def plugin(self) -> Cast:
        return Cast()


class TestInt8(TransformKit):
    def plugin(self) -> Int8:
        return Int8()


class TestInt4(TransformKit):
    def plugin(self) -> Int4:
        return Int4()


class TestPrune(TransformKit):
    def plugin(self) -> Prune:
        return Prune()


class TestTwoOfFour(TransformKit):
    def plugin(self) -> Prune:
        return Prune(pattern="2:4")


class TestLoRAMerge(TransformKit):
    """Of a transformer whose queries have adapters."""

    def plugin(self) -> LoRAMerge:
        return LoRAMerge()

    def source(self) -> Exported:
        spec = DataSpec({"inputs": ArraySpec((12,), "int32")}, vocab_size=13)
        model = LoRA(model=Transformer(layers=1, width=16, heads=2), rank=2, targets=("query",))
        network, rng = make_network(model, spec), np.random.default_rng(0)
        shapes = {**dotted(network.params), **dotted(network.frozen)}
        weights = {path.replace(".", "/"): rng.normal(size=x.shape).astype(np.float32) for path, x in shapes.items()}

        def forward(weights: Any, inputs: Any) -> dict[str, Any]:
            return {"output": module_of(network, "float32", weights)(inputs, train=False, rngs=None)}

        signature = Signature(
            {"inputs": Tensor(("batch", 12), "int32", 13)}, {"output": Tensor(("batch", 12, 13), "float32")}
        )
        rows = {"inputs": rng.integers(0, 13, (2, 12)).astype(np.int32)}
        return Exported(model, spec, [Program("forward", forward, signature)], {"batch": Dim(1, 4)}, weights, rows, {})
