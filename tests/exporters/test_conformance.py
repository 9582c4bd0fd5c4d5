"""exporter.hf does what every exporter must; what needs the transformers library is checked where that is installed."""

from assay.exported import Exported
from assay.testing import ExporterKit
from assay_plugins.exporters.example import exported
from assay_plugins.exporters.hf import HF
from assay_plugins.models.transformer import Transformer


class TestHF(ExporterKit):
    format = "hf"

    def plugin(self) -> HF:
        return HF()

    def impossible(self) -> Exported:
        return exported(Transformer(layers=1, width=16, heads=2, position="none"))
