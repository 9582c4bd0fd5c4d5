"""The ONNX exporter's kit, and other dtypes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest

from assay.exported import bound_of
from assay.testing import ExporterKit
from assay_export.onnx.exporter import ONNX
from assay_export.runners import opened

from ..conftest import Model


@pytest.mark.slow
class TestONNX(ExporterKit):
    format = "onnx"

    def plugin(self) -> ONNX:
        return ONNX()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "stored"), [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_other_dtypes_keep_their_bounds(decoder: Model, dtype: str, stored: str, tmp_path: Path) -> None:
    source = dataclasses.replace(decoder.source, programs=[decoder.source.program("forward")])
    place = decoder.artifact(tmp_path / "artifact", source, ONNX(dtype=dtype))
    graph = onnx.load_model(place / "onnx" / "forward.onnx", load_external_data=False).graph
    external = [i for i in graph.initializer if i.name.startswith("weights/")]
    assert {onnx.TensorProto.DataType.Name(i.data_type) for i in external} == {stored}
    runner = opened(place, "onnx", ONNX())
    tokens = np.arange(5, dtype=np.int32)[None]
    expected = np.asarray(
        jax.jit(source.program("forward").function)(dict(source.weights), {"inputs": tokens})["output"]
    )
    found = runner("forward", {"inputs": tokens})["output"].astype(np.float32)
    assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() <= bound_of(dtype)
