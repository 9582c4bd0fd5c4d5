"""exporter.hf does what every exporter must; what needs the transformers library is checked where that is installed."""

import numpy as np
import pytest

from assay.checkpoint.checkpoints import dotted
from assay.data.spec import ArraySpec, DataSpec
from assay.exported import Dim, Exported, Program, Signature, Tensor
from assay.network import make_network
from assay.testing import ExporterKit
from assay_export.programs import module_of
from assay_plugins.exporters.hf import HF
from assay_plugins.models.transformer import Transformer

SPEC = DataSpec({"inputs": ArraySpec((12,), "int32")}, vocab_size=13)
SIGNATURE = Signature(
    {"inputs": Tensor(("batch", "seq"), "int32", 13)}, {"output": Tensor(("batch", "seq", 13), "float32")}
)


def exported(model: Transformer) -> Exported:
    network, rng = make_network(model, SPEC), np.random.default_rng(0)
    weights = {
        path.replace(".", "/"): (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in dotted(network.params).items()
    }

    def forward(weights, inputs):
        return {"output": module_of(network, "float32", weights)(inputs, train=False, rngs=None)}

    return Exported(
        model=model,
        spec=SPEC,
        programs=[Program("forward", forward, SIGNATURE)],
        dims={"batch": Dim(1, 3), "seq": Dim(1, 12)},
        weights=weights,
        examples={},
        lineage={},
    )


class TestHF(ExporterKit):
    format = "hf"

    def plugin(self) -> HF:
        return HF()

    def source(self) -> Exported:
        return exported(Transformer(layers=1, width=16, heads=2, norm_epsilon=1e-2))

    def impossible(self) -> Exported:
        return exported(Transformer(layers=1, width=16, heads=2, position="none"))

    def test_what_it_wrote_computes_the_same(self) -> None:
        pytest.importorskip("transformers")
        super().test_what_it_wrote_computes_the_same()

    def test_outputs_can_be_inputs(self) -> None:
        pytest.importorskip("transformers")
        super().test_outputs_can_be_inputs()
