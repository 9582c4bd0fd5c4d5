"""One program to one ONNX file, tried until it is right: by either way of tracing, at every corner of its dynamic dims."""

import dataclasses
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import numpy as np
import onnx

from assay.errors import ExportError
from assay.exported import Dim, Program
from assay_export.onnx import passes
from assay_export.onnx.check import Wrong, check
from assay_export.onnx.converter import Converter
from assay_export.onnx.job import Job
from assay_export.onnx.stored import Weights
from assay_export.serve import trim

ROUTES = ("plain", "patched")
"""Tracing without jax2onnx's patches, our rewriting of jaxprs after it; jax2onnx's default."""
TRACING = threading.Lock()
"""One program is traced and checked at a time: a model may keep state while it is traced, and a check holds the weights."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """How a program was converted. route: of ROUTES. worst: the largest difference from jax, relative to the output's largest.

    outputs: name in the graph -> name in the program. in_place: inputs whose memory an output of the same name may be written to.
    """

    route: str
    worst: float
    outputs: Mapping[str, str]
    in_place: list[str]


def convert(
    program: Program,
    dims: Mapping[str, Dim],
    weights: Weights,
    directory: Path,
    *,
    converter: Converter,
    opset: int,
    tolerance: float,
    metadata: Mapping[str, str],
) -> Converted:
    """Write `directory/PROGRAM.onnx`, which takes its weights from the file of `weights` in the same directory.

    tolerance: of the largest difference from jax, relative to the largest output. metadata: put into the file.
    Raises ExportError naming the operation where neither route gives a graph that is right everywhere.
    """
    file = directory / f"{program.name}.onnx"
    with TRACING:
        job = Job(program, dims, weights.shapes, _outputs(program, dims, weights), opset)
    refusals = []
    with tempfile.TemporaryDirectory(prefix="assay-onnx-") as place:
        pickled, raw = Path(place, "job"), Path(place, "raw.onnx")
        pickled.write_bytes(cloudpickle.dumps(job))
        for route in ROUTES:
            answer = converter.convert(pickled, route, raw)
            if answer:
                refusals.append(answer)
                if answer.get("final"):
                    break
                continue
            try:
                with TRACING:
                    model = passes.finished(onnx.load_model(raw), job, weights, metadata)
                    file.write_bytes(model.SerializeToString())
                    worst = check(file, job, weights.arrays(), tolerance)
                    trim()
                outputs = dict(zip(job.output_names(), job.outputs, strict=True))
                return Converted(route, worst, outputs, passes.in_place(model, job))
            except Wrong as error:
                refusals.append({"error": str(error), "operation": error.operation})
    file.unlink(missing_ok=True)
    raise ExportError(f"{program.name} cannot be exported to ONNX: {_reason(refusals)}")


def _outputs(program: Program, dims: Mapping[str, Dim], weights: Weights) -> tuple[str, ...]:
    sizes = next(program.signature.sizes(dims))
    inputs = {n: jax.ShapeDtypeStruct(t.at(sizes), np.dtype(t.dtype)) for n, t in program.signature.inputs.items()}
    shapes = {path: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for path, (shape, dtype) in weights.shapes.items()}
    return tuple(jax.eval_shape(program.function, shapes, inputs))


def _reason(refusals: list[dict[str, Any]]) -> str:
    """The refusal of the first route, which works with jax's own operations, unless it names none."""
    named = [r for r in refusals if r["operation"]]
    chosen = (named or refusals)[0]
    prefix = f"operation {chosen['operation']}"
    return chosen["error"] if not chosen["operation"] or prefix in chosen["error"] else f"{prefix}: {chosen['error']}"
