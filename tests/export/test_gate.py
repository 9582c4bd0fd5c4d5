"""The gate finds each fault that is put in on purpose, and the layer that has it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import assay_plugins.models.transformer as transformer
from assay.exported import Exported, Program
from assay_export import parity
from assay_export.bisect import first_difference
from assay_export.cases import cases
from assay_export.stablehlo.exporter import StableHLO

from .conftest import FAMILIES, made


def with_weights(source: Exported, **changed: Any) -> Exported:
    return dataclasses.replace(source, weights={**source.weights, **changed})


def with_decode(source: Exported, function: Any) -> Exported:
    programs = [dataclasses.replace(p, function=function(p)) if p.name == "decode" else p for p in source.programs]
    return dataclasses.replace(source, programs=programs)


def swapped(source: Exported) -> Exported:
    one, other = (f"blocks/{i}/attention/value/kernel" for i in (0, 1))
    return with_weights(source, **{one: source.weights[other], other: source.weights[one]})


def transposed(source: Exported) -> Exported:
    name = "blocks/1/attention/query/kernel"
    return with_weights(source, **{name: np.ascontiguousarray(np.swapaxes(source.weights[name], 1, 2))})


def rope_off_by_one(source: Exported) -> Exported:
    def function(program: Program) -> Any:
        def decode(weights: Any, inputs: Any) -> Any:
            right = transformer.rotation
            transformer.rotation = lambda positions, *rest: right(positions + 1, *rest)
            try:
                return program.function(weights, inputs)
            finally:
                transformer.rotation = right

        return decode

    return with_decode(source, function)


def stale_cache(source: Exported) -> Exported:
    def function(program: Program) -> Any:
        return lambda w, inputs: {
            **program.function(w, inputs),
            **{n: 1.0 * inputs[n] for n in program.signature.donated},
        }

    return with_decode(source, function)


def test_the_sound_one_passes(decoder, tmp_path) -> None:
    checked = decoder.checked(tmp_path / "artifact")
    assert checked.problems == []
    assert checked.metrics == {}  # rows of the dataset are longer than max_length
    assert "rows of the dataset have 32 tokens, more than 5" in decoder.source.notes[0]


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (swapped, {"forward", "prefill", "decode", "steps"}),
        (transposed, {"forward", "prefill", "decode", "steps"}),
        (rope_off_by_one, {"decode", "steps"}),
        (stale_cache, {"steps"}),
    ],
)
def test_a_fault_is_found(fault, kinds, decoder, tmp_path) -> None:
    checked = decoder.checked(tmp_path / "artifact", fault(decoder.source))
    assert checked.problems
    assert {row["kind"] for row in checked.rows if not row["ok"]} == kinds


def test_a_program_that_nothing_compares_is_not_let_through(decoder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parity, "steps_case", lambda source, run: None)
    monkeypatch.setattr(parity, "cases", lambda source: [c for c in cases(source) if c.kind == "forward"])
    checked = decoder.checked(tmp_path / "artifact")
    assert checked.problems == [f"{name} was exported, and nothing compared it" for name in ("prefill", "decode")]


@pytest.mark.parametrize(("tokens", "program"), [(1, "decode"), (None, "prefill")])
def test_what_cannot_be_checked_is_left_out(tokens, program, tmp_path, monkeypatch) -> None:
    right = transformer.Decoder.decode

    def decode(self: Any, inputs: Any, *rest: Any) -> Any:
        if (inputs.shape[1] == 1) == (tokens == 1):
            raise TypeError("not with these")
        return right(self, inputs, *rest)

    monkeypatch.setattr(transformer.Decoder, "decode", decode)
    found = made("transformer", max_batch=1, max_length=5)
    assert [p.name for p in found.source.programs] == ["forward"]
    assert f"prefill and decode are left out: {program}: TypeError: not with these" in found.source.notes


def test_decoding_needs_a_forward_of_many_lengths(tmp_path, monkeypatch) -> None:
    right = transformer.Decoder.__call__

    def call(self: Any, batch: Any, **options: Any) -> Any:
        batch["inputs"].shape[1].__index__()
        return right(self, batch, **options)

    monkeypatch.setattr(transformer.Decoder, "__call__", call)
    found = made("transformer", max_batch=1, max_length=5)
    assert [p.name for p in found.source.programs] == ["forward"]
    assert (
        "prefill and decode are left out: forward is of one length, and they are checked at many" in found.source.notes
    )
    assert found.checked(tmp_path / "artifact").problems == []


@pytest.mark.parametrize(
    ("fault", "layer"), [(swapped, "blocks/0/attention/value"), (transposed, "blocks/1/attention/query")]
)
def test_the_first_layer_that_differs_is_named(fault, layer, decoder, tmp_path) -> None:
    place = decoder.artifact(tmp_path / "artifact", fault(decoder.source))
    found = first_difference(place, "stablehlo", StableHLO(), decoder.source, decoder.live)
    assert f"the first layer that differs is {layer}, by" in found


@pytest.mark.parametrize(
    ("family", "further", "weight", "layer"),
    [
        ("gcn", "", "layers/0/kernel", "layers/0"),  # the network asks for more than it reads
        ("lora", "model.transformer.remat = 'full'\n", "base/tokens/embedding", "Embedding"),
        ("bayesian_mlp", "", "guide/log_scale/kernel_1", None),  # row by row
    ],
)
def test_every_family_has_a_first_layer_or_a_reason(family, further, weight, layer, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, family, FAMILIES[family] + further)
    model = made(family, max_batch=2)
    place = model.artifact(
        tmp_path / "artifact", with_weights(model.source, **{weight: model.source.weights[weight] + 1})
    )
    found = first_difference(place, "stablehlo", StableHLO(), model.source, model.live)
    said = f"the first layer that differs is {layer}, by" if layer else "its layers cannot be exported one by one: "
    assert found.startswith(f"stablehlo: {said}")


def test_a_layer_that_cannot_be_shown_costs_no_artifact(decoder, tmp_path, monkeypatch) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyError("mask")

    place = decoder.artifact(tmp_path / "artifact", swapped(decoder.source))
    monkeypatch.setattr("assay_export.bisect.module_of", broken)
    found = first_difference(place, "stablehlo", StableHLO(), decoder.source, decoder.live)
    assert found == "stablehlo: its layers cannot be exported one by one: KeyError: 'mask'"


def test_decoding_that_differs_is_not_laid_to_a_layer_of_forward(decoder, tmp_path) -> None:
    place = decoder.artifact(tmp_path / "artifact", stale_cache(decoder.source))
    found = first_difference(place, "stablehlo", StableHLO(), decoder.source, decoder.live)
    assert "no layer of forward differs" in found


def test_a_library_with_layers_of_its_own_is_not_bisected(decoder, tmp_path) -> None:
    class Whole(StableHLO):
        """Gives the output alone, whatever programs there are."""

        def write(self, source: Exported, directory: Any) -> Any:
            forward = source.program("forward")
            name, tensor = next(iter(forward.signature.outputs.items()))
            function = lambda weights, inputs: {name: forward.function(weights, inputs)[name]}
            signature = dataclasses.replace(forward.signature, outputs={name: tensor})
            alone = dataclasses.replace(forward, function=function, signature=signature)
            return super().write(dataclasses.replace(source, programs=[alone]), directory)

    place = decoder.artifact(tmp_path / "artifact", swapped(decoder.source))
    found = first_difference(place, "stablehlo", Whole(), decoder.source, decoder.live)
    assert found == (
        "stablehlo: its layers cannot be exported one by one: it is run by a library's own layers, and gives the output alone"
    )
