"""The caller's side of the converting subprocess."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from assay.errors import ExportError
from assay_export.onnx.worker import MEMORY

PYTHON_VARIABLE = "ASSAY_ONNX_PYTHON"
ADVICE = (
    "`pip install --no-deps jax2onnx==0.17.1` puts it beside Assay (its own list of dependencies holds Orbax back and is not needed); "
    f"or set {PYTHON_VARIABLE} to a Python of the same version that has jax2onnx, jax and flax"
)

SETTINGS = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_RANK_PROMOTION": "allow", "PYTHONWARNINGS": "ignore"}
"""Of the subprocess: jax2onnx's own functions promote ranks and warn."""


class ConverterError(ExportError):
    """The converter cannot be used, whatever the program: it is not installed, or the machine has no memory or room left."""


class Converter:
    """A subprocess that converts jobs one after another; a context manager.

    It runs this Python, or the one that ASSAY_ONNX_PYTHON names. Raises ConverterError where it does not start.
    """

    def __init__(self) -> None:
        python = os.environ.get(PYTHON_VARIABLE, sys.executable)
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": path}
        command = [python, "-m", "assay_export.onnx.worker"]
        self._free = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process ends
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        try:
            self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        except OSError as error:
            self._log.close()
            raise ConverterError(f"{PYTHON_VARIABLE} = {python!r} cannot be run: {error.strerror}. {ADVICE}") from error
        try:
            self.version: str = self._answer()["version"]
        except BaseException:
            self.close()
            raise

    def convert(self, job: Path, route: str, model: Path) -> dict[str, Any]:
        """Convert a pickled Job, when it is its turn, and write `model`; {} or what is wrong with the program: "error" and "operation".

        Raises ConverterError where the machine is in the way: the process was killed, the disk is full.
        """
        assert self._process.stdin is not None
        with self._free:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and _answer says how
                self._process.stdin.write(json.dumps({"job": str(job), "route": route, "model": str(model)}) + "\n")
                self._process.stdin.flush()
            answer = self._answer()
        if "stopped" in answer:
            raise ConverterError(f"converting to ONNX stopped: {answer['stopped']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # of what could not be written to a process that has ended
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
        status = self._process.wait()
        if status == -signal.SIGKILL:
            raise ConverterError(f"converting to ONNX stopped: {MEMORY}")
        last = said[-1] if said else f"status {status}"
        if "No module named 'jax2onnx'" in last:
            raise ConverterError(f"exporting to ONNX needs jax2onnx: {ADVICE}")
        raise ConverterError(f"the converter to ONNX ended: {last}; export again, or to another format")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
