"""The caller's side of the converting subprocess."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from assay.errors import ExportError

PYTHON_VARIABLE = "ASSAY_ONNX_PYTHON"
ADVICE = (
    "`pip install --no-deps jax2onnx==0.17.1` puts it beside Assay (its own list of dependencies holds Orbax back and is not needed); "
    f"or set {PYTHON_VARIABLE} to a Python of the same version that has jax2onnx, jax and flax"
)

SETTINGS = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_RANK_PROMOTION": "allow", "PYTHONWARNINGS": "ignore"}
"""Of the subprocess: jax2onnx's own functions promote ranks and warn."""


class Converter:
    """A subprocess that converts jobs one after another; a context manager.

    It runs this Python, or the one that ASSAY_ONNX_PYTHON names. Raises ExportError where it does not start.
    """

    def __init__(self) -> None:
        python = os.environ.get(PYTHON_VARIABLE, sys.executable)
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": path}
        command = [python, "-m", "assay_export.onnx.worker"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process ends
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        try:
            self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        except OSError as error:
            self._log.close()
            raise ExportError(f"{PYTHON_VARIABLE} = {python!r} cannot be run: {error.strerror}. {ADVICE}") from error
        try:
            self.version: str = self._answer()["version"]
        except BaseException:
            self.close()
            raise

    def convert(self, job: Path, route: str, model: Path) -> dict[str, Any]:
        """Convert a pickled Job and write `model`; {} or {"error": text, "operation": name or None}."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"job": str(job), "route": route, "model": str(model)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        last = said[-1] if said else f"status {self._process.wait()}"
        missing = "No module named 'jax2onnx'" in last
        raise ExportError(
            f"exporting to ONNX needs jax2onnx: {ADVICE}" if missing else f"the converter to ONNX ended: {last}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
