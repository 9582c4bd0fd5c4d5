"""What is said where the machine and not the program is in the way of converting: a process that ends, memory, a full disk."""

import json
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from assay.data.spec import DataSpec
from assay.errors import ExportError
from assay.exported import Dim, Exported, Program, Signature, Tensor
from assay_export.onnx import convert, worker
from assay_export.onnx.converter import PYTHON_VARIABLE, Converter, ConverterError
from assay_export.onnx.exporter import ONNX

VERSION = """echo '{"version": "1"}'"""


@pytest.fixture(scope="module", autouse=True)
def one_converter() -> None:
    """Each export starts the converter that its test is about."""


def worker_that(directory: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    script = directory / "python"
    script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    script.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(script))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([VERSION, "read line", "kill -9 $$"], r"^converting to ONNX stopped: memory ran out \(signal 9\); free some"),
        ([VERSION, "kill -9 $$"], r"^converting to ONNX stopped: memory ran out"),
        ([VERSION, "exec 0<&-", "echo broken >&2", "exit 3"], r"^the converter to ONNX ended: broken; export again"),
        ([VERSION, "exit 3"], r"^the converter to ONNX ended: status 3; export again"),
        ([VERSION, "read line", """echo '{"stopped": "no room"}'"""], r"^converting to ONNX stopped: no room$"),
    ],
)
def test_a_worker_that_ends(lines: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    worker_that(tmp_path, monkeypatch, *lines)
    with Converter() as found, pytest.raises(ConverterError, match=message):
        found.convert(Path("job"), "plain", Path("model"))


def test_a_worker_without_the_library(tmp_path: Path, monkeypatch) -> None:
    worker_that(tmp_path, monkeypatch, "echo \"ModuleNotFoundError: No module named 'jax2onnx'\" >&2", "exit 1")
    with pytest.raises(ConverterError, match="pip install --no-deps jax2onnx"):
        Converter()


@pytest.mark.parametrize(
    ("signal", "answer"), [(9, {"stopped": worker.MEMORY}), (11, {"error": "the converter ended with status -11", "operation": None})]
)  # fmt: skip
def test_a_conversion_that_is_killed(signal: int, answer: dict[str, object]) -> None:
    code = (
        "import json, os; from assay_export.onnx import worker; "
        f"worker._convert = lambda request: os.kill(os.getpid(), {signal}); print(json.dumps(worker._in_fork({{}})))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(found.stdout) == answer


def test_a_full_disk(tmp_path: Path, monkeypatch) -> None:
    class Model:
        def SerializeToString(self) -> bytes:
            return b"model"

    (tmp_path / "job").write_bytes(cloudpickle.dumps(None))
    request = {"job": str(tmp_path / "job"), "route": "plain", "model": "/dev/full"}
    monkeypatch.setitem(worker.ROUTES, "plain", lambda job: Model())
    answer = worker._convert(request)["stopped"]
    assert "No space left on device" in answer
    assert "make room there, or set TMPDIR" in answer

    def hungry(job: object) -> None:
        raise MemoryError

    monkeypatch.setitem(worker.ROUTES, "plain", hungry)
    assert worker._convert(request) == {"stopped": worker.MEMORY}


@pytest.mark.parametrize(("error", "kept"), [(ExportError("refused"), True), (ConverterError("stopped"), False)])
def test_only_a_refusal_leaves_a_program_out(error: ExportError, kept: bool, tmp_path: Path, monkeypatch) -> None:
    worker_that(tmp_path, monkeypatch, VERSION, "cat > /dev/null")
    (tmp_path / "onnx").mkdir()
    signature = Signature({"x": Tensor(("batch", 2), "float32")}, {"y": Tensor(("batch", 2), "float32")})
    programs = [Program(name, lambda w, i: {"y": i["x"]}, signature) for name in ("forward", "decode")]
    weights = {"kernel": np.ones((2, 2), np.float32)}
    source = Exported(None, DataSpec({}), programs, {"batch": Dim(1, 2)}, weights, {}, {})

    def converted(program: Program, *rest: object, **further: object) -> convert.Converted:
        if program.name == "decode":
            raise error
        return convert.Converted("plain", 0.0, {}, [])

    monkeypatch.setattr(convert, "convert", converted)
    if kept:
        written = ONNX().write(source, tmp_path / "onnx")
        assert written.programs == ("forward",)
        assert written.notes == ("prefill and decode are left out: refused",)
        assert written.requirements == ("onnxruntime>=1.23", "numpy")
    else:
        with pytest.raises(ConverterError, match="stopped"):
            ONNX().write(source, tmp_path / "onnx")
