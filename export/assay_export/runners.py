"""Runners of an artifact: in this process, or in a fresh one that imports nothing but what the format's loader needs.

Both use the loaders that are installed with the exporters. Those in the artifact are for people without Assay, and are not executed.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from assay.errors import ExportError
from assay.exported import Runner
from assay.kinds import Exporter
from assay_export import manifest, run

SCRIPT = Path(run.__file__)
"""Of artifacts, for people without Assay."""
SERVER = Path(__file__).with_name("serve.py")
SETTINGS = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the live model is on the same GPU
    "NVIDIA_TF32_OVERRIDE": "0",  # cuBLAS and cuDNN, of whatever library: float32 is compared as such
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}
WITHOUT_TRITON = "--xla_gpu_enable_triton_gemm=false"  # XLA's own products take TF32 where cuBLAS is told not to


def opened(artifact: Path, name: str, exporter: Exporter) -> Runner:
    """The format `name` of an artifact, in this process. Raises ExportError for inputs that do not fit, and what the format raises.

    What comes in place of a donated array, such as a cache, stays where the format has it: it need not be copied for every token.
    """
    call, programs = run.load(artifact, name, exporter.loader()), manifest.read(artifact)["programs"]

    def runner(program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            found = call(program, inputs)
            return {n: x if n in programs[program]["donated"] else np.asarray(x) for n, x in found.items()}
        except ValueError as error:
            raise ExportError(str(error)) from error

    return runner


@dataclasses.dataclass(frozen=True)
class Held:
    """What stays in the process in place of an array: good as the input of its name in the next call, and in no other."""

    calls: int


class Process:
    """A Runner in a fresh process, as a context manager. bfloat16 comes out as float32; what comes in place of a donated array is Held.

    python: of an environment that has the format's requirements; that of this process where it is None.
    """

    def __init__(self, artifact: Path, name: str, exporter: Exporter, python: str | None = None) -> None:
        self._name, self._artifact, self._calls = name, artifact, 0
        loader = ["--artifact", str(artifact), "--format", name, "--loader", str(exporter.loader())]
        self._command = [python or sys.executable, "-I", str(SERVER), *loader]

    def __enter__(self) -> Self:
        """Start the process."""
        self._donated = {n: p["donated"] for n, p in manifest.read(self._artifact)["programs"].items()}
        self._files = tempfile.TemporaryDirectory(prefix="assay-parity-")
        self._errors = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=_environment()
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._files.cleanup()

    def __call__(self, program: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for named inputs. Raises ExportError with what the process says."""
        held = [x for x in inputs.values() if isinstance(x, Held)]
        assert all(x.calls == self._calls for x in held), "what another call has used up"
        given, got = (Path(self._files.name) / f"{side}.npz" for side in ("inputs", "outputs"))
        np.savez(given, **{name: _storable(x) for name, x in inputs.items() if not isinstance(x, Held)})  # type: ignore[arg-type]
        self._ask([program, str(given), str(got)])
        self._calls += 1
        with np.load(got, allow_pickle=False) as arrays:
            return {**arrays, **dict.fromkeys(self._donated[program], Held(self._calls))}

    def forget(self) -> None:
        """Free what has been compiled there: what is run at sizes that do not come again need not stay."""
        self._ask("forget")

    def reload(self) -> None:
        """Free the weights too, of which every program may have some of its own; they are read again."""
        self._ask("reload")

    def _ask(self, request: Sequence[str]) -> None:
        problem = self._answer(request)
        if problem:
            raise ExportError(f"{self._name}: {problem}")

    def _answer(self, request: Sequence[str]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            if self._process.wait() == -signal.SIGKILL:
                raise ExportError(
                    f"{self._name}: the process that runs the artifact was killed (signal 9), as it is where memory runs out; free some, "
                    "or export with smaller --max-batch and --max-length"
                )
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise ExportError(f"{self._name}: the process that runs the artifact ended and said: {last[0]}")
        return json.loads(answer)


def _storable(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32) if str(array.dtype) == "bfloat16" else np.asarray(array)


def _environment() -> dict[str, str]:
    """Of a fresh process: it leaves room on a GPU, and multiplies float32 as float32."""
    found = {**os.environ, **SETTINGS}
    jax = sys.modules.get("jax")
    if jax is not None and jax.default_backend() == "gpu":
        found["XLA_FLAGS"] = f"{found.get('XLA_FLAGS', '')} {WITHOUT_TRITON}".strip()
    return found
