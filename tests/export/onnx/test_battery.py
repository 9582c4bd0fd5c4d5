"""Small programs of every sort through the wrapper: right everywhere, or refused with the operation named."""

import dataclasses
import os
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
from battery import CASES, Case  # a module on sys.path, so that the converter's process can import its functions

from assay.errors import ExportError
from assay_export.onnx import stored
from assay_export.onnx.check import compare, drawn
from assay_export.onnx.convert import Converted, convert
from assay_export.onnx.converter import Converter

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "onnx.md"
BEGIN, END = "<!-- battery -->\n", "<!-- end of battery -->\n"
TOLERANCE = 2e-5


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a case. fresh: the largest difference at sizes and numbers that the wrapper did not see."""

    converted: Converted | None
    refusal: str
    fresh: float


@pytest.fixture(scope="module")
def results(converter: Converter) -> dict[str, Result]:
    with jax.numpy_rank_promotion("allow"):  # as users write programs
        return {name: result(case, converter) for name, case in CASES.items()}


def result(case: Case, converter: Converter) -> Result:
    with tempfile.TemporaryDirectory(prefix="assay-battery-") as place:
        weights = stored.write(case.weights, Path(place), computed="float32", kept="float32")
        try:
            found = convert(
                case.program, case.dims, weights, Path(place),
                converter=converter, opset=23, tolerance=TOLERANCE, metadata={},
            )  # fmt: skip
        except ExportError as error:
            return Result(None, str(error), 0.0)
        return Result(found, "", difference(case, Path(place, f"{case.program.name}.onnx"), found))


def difference(case: Case, file: Path, found: Converted) -> float:
    """From jax, at a size between the corners of every dim."""
    sizes = {name: dim.low + (dim.high - dim.low) // 3 for name, dim in case.dims.items()}
    inputs = drawn(case.program.signature.inputs, sizes, np.random.default_rng(77))
    expected = jax.jit(case.program.function)(dict(case.weights), inputs)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))
    return max(compare(outputs[o], np.asarray(expected[name])) for o, name in found.outputs.items())


@pytest.mark.slow
def test_most_of_the_battery_converts_and_the_rest_is_refused_by_name(results: dict[str, Result]) -> None:
    expected = {name: case.refused for name, case in CASES.items()}
    named = {name: _operation(r.refusal) if r.refusal else None for name, r in results.items()}
    assert named == expected
    assert len(CASES) >= 50
    assert sum(r.converted is not None for r in results.values()) >= 0.9 * len(CASES)


@pytest.mark.slow
def test_nothing_in_the_battery_is_silently_wrong(results: dict[str, Result]) -> None:
    assert {name: r.fresh for name, r in results.items() if r.fresh > TOLERANCE} == {}


@pytest.mark.slow
def test_the_guide_has_the_table(results: dict[str, Result]) -> None:
    table = "".join(["| program | ONNX |\n|---|---|\n", *(_row(name, r) for name, r in results.items())])
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    if os.environ.get("ASSAY_UPDATE_GOLDEN"):
        PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")
    else:
        assert rest.split(END)[0] == table


def _operation(refusal: str) -> str:
    found = re.search(r"operation ([\w.]+)", refusal)
    return found.group(1) if found else refusal


def _row(name: str, result: Result) -> str:
    shown = "right" if result.converted else f"refused: `{_operation(result.refusal)}`"
    return f"| {name.replace('_', ' ')} | {shown} |\n"
