"""ONNX files of a run's programs, for onnxruntime and whatever else reads them."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from assay.errors import ExportError
from assay.exported import Exported, Written, bound_of

OLDEST = 18
"""Opset that jax2onnx writes valid graphs from: ReduceMean takes its axes as an input."""
RUNTIME_OPSET, RUNTIME = 23, "1.23"
"""An opset, and the first onnxruntime that loads graphs of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ONNX:
    """`PROGRAM.onnx` for every program, and their weights in `weights.data` (so no file meets protobuf's 2 GB).

    opset: of the graphs, from 18. dtype: float32 or float16 throughout, or bfloat16: weights in it, arithmetic in float32, since
    onnxruntime has few operations in bfloat16. It does not depend on the dtype of the checkpoint.
    """

    opset: int = 23
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Raise ValueError for an opset that is too old."""
        if self.opset < OLDEST:
            raise ValueError(f"opset = {self.opset}: must be at least {OLDEST}")

    def write(self, source: Exported, directory: Path) -> Written:
        """Raises ExportError naming the operation where `forward` does not convert; prefill and decode are written both or not at all."""
        _needs("onnx", "onnxruntime")
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if self.opset > newest:
            raise ExportError(f"opset = {self.opset}: the onnx that is installed knows those up to {newest}")
        from assay_export.onnx import stored
        from assay_export.onnx.convert import convert
        from assay_export.onnx.converter import Converter, ConverterError
        from assay_export.onnx.dtypes import in_dtype

        computed = "float16" if self.dtype == "float16" else "float32"
        dtypes = {path: str(w.dtype) for path, w in source.weights.items()}
        weights = stored.write(source.weights, directory, computed=computed, kept=self.dtype)
        metadata, facts, notes = _metadata(source, weights.file), dict[str, Any](), list[str]()
        with Converter() as converter, ThreadPoolExecutor(2) as pool:  # one converts while the other is checked
            converting = [
                pool.submit(
                    convert,
                    in_dtype(program, dtypes, computed),
                    source.dims,
                    weights,
                    directory,
                    converter=converter,
                    opset=self.opset,
                    tolerance=bound_of(computed),
                    metadata=metadata,
                )
                for program in source.programs
            ]
            try:
                for program, found in zip(source.programs, converting, strict=True):
                    facts[program.name] = dataclasses.asdict(found.result())
            except ExportError as error:
                if not facts or isinstance(error, ConverterError):
                    raise
                facts = dict([next(iter(facts.items()))])  # prefill or decode without the other decodes nothing
                notes.append(f"prefill and decode are left out: {error}")
            finally:
                pool.shutdown(cancel_futures=True)
            version = converter.version
        for name in {p.name for p in source.programs} - facts.keys():
            (directory / f"{name}.onnx").unlink(missing_ok=True)
        stated = {"programs": facts, "opset": self.opset, "dtype": self.dtype, "jax2onnx": version}
        bound = bound_of(self.dtype, source.dtype)
        return Written(tuple(facts), stated, (_runtime(self.opset), "numpy"), bound, tuple(notes))

    def loader(self) -> Path:
        """Needs onnxruntime and numpy."""
        return Path(__file__).with_name("loader.py")


def _runtime(opset: int) -> str:
    """The onnxruntime that is needed: of newer opsets, the one that the graphs were checked with."""
    version = RUNTIME if opset <= RUNTIME_OPSET else importlib.metadata.version("onnxruntime")
    return f"onnxruntime>={version}"


def _needs(*modules: str) -> None:
    """Raise ExportError for libraries that are missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"exporting to ONNX needs {', '.join(missing)}: pip install 'assay[onnx]'")


def _metadata(source: Exported, weights: Path) -> dict[str, str]:
    """What the files say of themselves."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lineage = {
        f"assay.{key}": v if isinstance(v, str) else json.dumps(v, default=str) for key, v in source.lineage.items()
    }
    bounds = {name: [dim.low, dim.high] for name, dim in source.dims.items()}
    return {**lineage, "assay.dims": json.dumps(bounds), "assay.weights_sha256": digest}
