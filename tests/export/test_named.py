"""Exporters and transforms by name and settings, as a command line has them, and what is said where they are none."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay import registry
from assay.errors import ExportError, PluginError
from assay_export.named import exporter_of, exporters_of
from assay_export.onnx.exporter import ONNX
from assay_export.stablehlo.exporter import StableHLO


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deep:
    """An exporter without a default."""

    depth: int

    def loader(self) -> Path:
        return Path(__file__)


@pytest.fixture(autouse=True)
def plugins() -> Iterator[None]:
    with (
        registry.temporary("exporter", "stablehlo", StableHLO),
        registry.temporary("exporter", "onnx", ONNX),
        registry.temporary("exporter", "deep", Deep),
    ):
        yield


def test_several_with_commas_in_their_settings() -> None:
    found = exporters_of('stablehlo(buckets=[], platforms=["cpu", "tpu"]),onnx(dtype="float16")')
    assert list(found) == ["stablehlo", "onnx"]
    assert found == {"stablehlo": StableHLO(platforms=("cpu", "tpu"), buckets=()), "onnx": ONNX(dtype="float16")}
    assert exporters_of(" onnx, stablehlo ") == {"onnx": ONNX(), "stablehlo": StableHLO()}
    assert exporters_of("stablehlo(buckets=[{'batch': 2}])")["stablehlo"] == StableHLO(buckets=({"batch": 2},))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'stablehlo,onnx(dtyp="float16", opset="x")',
            "--to onnx(dtyp=\"float16\", opset=\"x\"): exporter.onnx has no setting 'dtyp'. Did you mean 'dtype'?; "
            "opset expects int, got 'x' (str); exporter.onnx has opset=23, dtype='float32'",
        ),
        ("onnx(opset=3)", "--to onnx(opset=3): opset = 3: must be at least 18; exporter.onnx has opset=23, dtype='float32'"),
        ("deep", "--to deep: exporter.deep needs depth; exporter.deep has depth"),
        (
            "onnx(dtype=float16)",
            "--to onnx(dtype=float16): dtype=float16 is no value; write a number, True, None, a list such as [1, 2], or text in quotes",
        ),
        ("onnx(opset=18, opset=19)", "--to onnx(opset=18, opset=19): opset is given twice"),
        ("onnx,onnx(opset=18)", "--to onnx,onnx(opset=18): onnx is named twice; each format is written once"),
        ("onnx(**{'opset': 18})", "--to onnx(**{'opset': 18}): it is no exporter; write NAME or NAME(setting=value, …)"),
        ("onnx(opset=18", "--to onnx(opset=18: '(' was never closed; write NAME"),
        ("", "--to : invalid syntax; write NAME"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_once(text: str, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        exporters_of(text)
    assert str(caught.value).startswith(message)


def test_an_unknown_format_has_neighbours() -> None:
    with pytest.raises(PluginError, match=r"no plugin 'exporter\.onx'. Did you mean 'exporter\.onnx'"):
        exporters_of("stablehlo,onx")


def test_an_artifacts_exporter_has_its_settings() -> None:
    content = {"formats": {"deep": {"settings": {"depth": 3, "gone": 1}}, "onnx": {}}}
    assert exporter_of(content, "deep") == Deep(depth=3)
    assert exporter_of(content, "onnx") == ONNX()  # an artifact from before settings were recorded
