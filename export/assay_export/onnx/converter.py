"""The caller's side of the converting subprocess."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from assay.errors import AssayError

PYTHON_VARIABLE = "ASSAY_ONNX_PYTHON"


class Converter:
    """A subprocess that converts jobs one after another; a context manager.

    It runs this Python, or the one that the variable ASSAY_ONNX_PYTHON names, which must hold jax2onnx.
    """

    def __init__(self) -> None:
        python = os.environ.get(PYTHON_VARIABLE, sys.executable)
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [python, "-m", "assay_export.onnx.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        self.version = self._answer()["version"]

    def convert(self, job: Path, route: str, model: Path) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"job": str(job), "route": route, "model": str(model)}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise AssayError("the converter ended")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.stdin.close()
        self.process.wait()
