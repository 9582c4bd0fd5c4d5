"""The conformance kit of exporters: a sound one passes, and each check catches the exporter that it is for."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest
from jax import export

from assay.errors import ExportError
from assay.exported import Exported, Program, Written
from assay.testing import ExporterKit, exporter_example, run

LOADER = """
def load(artifact, manifest, facts):
    from jax import export
    from safetensors.numpy import load_file

    weights = load_file(artifact / "weights/model.safetensors")

    def run(program, inputs):
        label = "-".join(str(n) for name in sorted(inputs) for n in inputs[name].shape)
        blob = (artifact / "checked" / f"{program}-{label}").read_bytes()
        return export.deserialize(bytearray(blob)).call(weights, inputs)

    return run
"""


@dataclasses.dataclass(frozen=True)
class Sound:
    """A file for each corner of the sizes. place: of the loader."""

    place: Path
    text: str = LOADER

    def function(self, program: Program) -> Any:
        return program.function

    def write(self, source: Exported, directory: Path) -> Written:
        weights = {path: jax.ShapeDtypeStruct(w.shape, w.dtype) for path, w in source.weights.items()}
        for program in source.programs:
            for sizes in program.signature.sizes(source.dims):
                inputs = {n: jax.ShapeDtypeStruct(t.at(sizes), t.dtype) for n, t in program.signature.inputs.items()}
                label = "-".join(str(n) for name in sorted(inputs) for n in inputs[name].shape)
                try:
                    blob = export.export(jax.jit(self.function(program)))(weights, inputs).serialize()
                except Exception as error:
                    raise ExportError(f"{program.name}: {error}") from error
                (directory / f"{program.name}-{label}").write_bytes(blob)
        return Written([p.name for p in source.programs], {}, ["jax"])

    def loader(self) -> Path:
        self.place.write_text(self.text)
        return self.place


class Beside(Sound):
    def write(self, source: Exported, directory: Path) -> Written:
        (directory.parent / "notes.txt").write_text("mine")
        return super().write(source, directory)


class Unspeakable(Sound):
    def write(self, source: Exported, directory: Path) -> Written:
        return dataclasses.replace(super().write(source, directory), facts={"sizes": (1, 2)})


class Wrong(Sound):
    def function(self, program: Program) -> Any:
        return lambda w, inputs: {n: 1.001 * x for n, x in program.function(w, inputs).items()}


class Stale(Sound):
    def function(self, program: Program) -> Any:
        return lambda w, i: {**program.function(w, i), **{n: i[n] for n in program.signature.donated}}


class Dependent(Sound):
    def __init__(self, place: Path) -> None:
        super().__init__(
            place, LOADER.replace("from jax import export", "from jax import export\n    import assay.exported", 1)
        )


class Silent(Sound):
    def write(self, source: Exported, directory: Path) -> Written:
        try:
            return super().write(source, directory)
        except ExportError:
            return Written(["forward"], {}, ["jax"])


def failed(plugin: Any) -> set[str]:
    kit = type("checked", (ExporterKit,), {"plugin": lambda self: plugin, "format": "checked"})()
    return {result.name for result in run(kit) if result.status == "failed"}


def test_a_sound_exporter_passes(tmp_path) -> None:
    assert failed(Sound(tmp_path / "loader.py")) == set()


@pytest.mark.parametrize(
    ("plugin", "check"),
    [
        (Beside, "test_it_writes_into_its_directory_alone"),
        (Unspeakable, "test_its_facts_are_json"),
        (Wrong, "test_what_it_wrote_computes_the_same"),
        (Stale, "test_outputs_can_be_inputs"),
        (Dependent, "test_its_loader_needs_no_assay"),
        (Silent, "test_it_refuses_in_words"),
    ],
)
def test_each_check_catches_its_exporter(plugin, check, tmp_path) -> None:
    assert check in failed(plugin(tmp_path / "loader.py"))


@dataclasses.dataclass(frozen=True)
class OfModels(Sound):
    """Writes what has a model, as a format does that knows architectures."""

    requirements: tuple[str, ...] = ("jax",)

    def write(self, source: Exported, directory: Path) -> Written:
        if source.model is None:
            raise ExportError("there is no model")
        return dataclasses.replace(super().write(source, directory), requirements=self.requirements)


class WithExample(OfModels):
    def example(self) -> Exported:
        return dataclasses.replace(exporter_example.programs(), model="a model")


class Refusing(WithExample):
    def write(self, source: Exported, directory: Path) -> Written:
        raise ExportError("not today")


def results(plugin: Any) -> dict[str, Any]:
    kit = type("checked", (ExporterKit,), {"plugin": lambda self: plugin, "format": "checked"})()
    return {result.name: result for result in run(kit)}


def test_an_exporter_of_models_brings_its_example(tmp_path) -> None:
    assert failed(WithExample(tmp_path / "loader.py")) == set()
    found = results(OfModels(tmp_path / "loader.py"))["test_what_it_wrote_computes_the_same"]
    assert found.status == "failed"
    assert "there is no model: a format that knows architectures" in found.detail


def test_one_that_refuses_everything_fails(tmp_path) -> None:
    found = results(Refusing(tmp_path / "loader.py"))["test_it_writes_into_its_directory_alone"]
    assert (found.status, found.detail) == ("failed", "it refuses what it is to write: not today")


def test_what_cannot_be_loaded_here_is_skipped(tmp_path) -> None:
    found = results(WithExample(tmp_path / "loader.py", requirements=("jax", "torch_of_tomorrow>=9")))
    skipped = {name: result.detail for name, result in found.items() if result.status == "skipped"}
    assert set(skipped) == {"test_what_it_wrote_computes_the_same", "test_outputs_can_be_inputs"}
    assert set(skipped.values()) == {"its loader needs torch_of_tomorrow>=9, which is not installed here"}
