"""The gate finds each fault in an ONNX artifact too; all are made of one export, whose graphs or numbers are exchanged."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.exported import Exported
from assay_export import artifact, manifest
from assay_export.onnx import stored
from assay_export.onnx.exporter import ONNX
from assay_export.parity import Checked, gate

from ..conftest import Model
from ..test_gate import rope_off_by_one, stale_cache, swapped, transposed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound(decoder: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("onnx") / "artifact"
    place.mkdir()
    artifact.fill(place, decoder.source, {"onnx": ONNX()}, {"tokenizer": None})
    return place


def checked(model: Model, place: Path) -> Checked:
    return gate(place, "onnx", ONNX(), model.source, model.live, examples=24)


def other_numbers(place: Path, source: Exported) -> None:
    """The weights of `source` in the file that the graphs share."""
    stored.write(source.weights, place / "onnx", computed="float32", kept="float32")


def another_decode(place: Path, source: Exported) -> None:
    """The decode of `source`, exported anew."""
    scratch = place.parent / "scratch"
    scratch.mkdir()
    ONNX().write(dataclasses.replace(source, programs=[source.program("decode")]), scratch)
    shutil.copy(scratch / "decode.onnx", place / "onnx" / "decode.onnx")


def test_the_sound_one_passes(sound: Path, decoder: Model) -> None:
    assert manifest.bound_in(manifest.read(sound), "onnx") == 2e-5
    assert checked(decoder, sound).problems == []


@pytest.mark.parametrize(
    ("fault", "exchange", "kinds"),
    [
        (swapped, other_numbers, {"forward", "prefill", "decode", "steps"}),
        (transposed, other_numbers, {"forward", "prefill", "decode", "steps"}),
        (rope_off_by_one, another_decode, {"decode", "steps"}),
        (stale_cache, another_decode, {"steps"}),
    ],
)
def test_a_fault_is_found(
    fault: Callable[[Exported], Exported],
    exchange: Callable[[Path, Exported], None],
    kinds: set[str],
    sound: Path,
    decoder: Model,
    tmp_path: Path,
) -> None:
    place = Path(shutil.copytree(sound, tmp_path / "artifact"))
    exchange(place, fault(decoder.source))
    found = checked(decoder, place)
    assert found.status == "failed"
    assert {row["kind"] for row in found.rows if not row["ok"]} == kinds
