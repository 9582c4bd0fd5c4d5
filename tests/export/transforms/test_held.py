"""A transform is held to the model as it was: one that does something else than it says is refused, and nothing is written."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from assay.errors import ExportError
from assay.exported import Exported
from assay_export.transforms import prune, quantised
from assay_export.transforms.cast import Cast
from assay_export.transforms.int4 import Int4
from assay_export.transforms.int8 import Int8
from assay_export.transforms.lora_merge import LoRAMerge
from assay_export.transforms.prune import Prune
from assay_export.transforms.report import of_artifact, transformed
from assay_plugins.models.lora import LoRA, merged

from ..conftest import FAMILIES, Model, made

INT4 = Int4(group=8)  # two groups in each kernel of the model


@pytest.fixture(scope="module")
def vit() -> Model:
    return made("vit", max_batch=2)


@pytest.fixture(scope="module")
def adapted() -> Model:
    with pytest.MonkeyPatch.context() as patch:
        text = FAMILIES["vit"].replace("@model.vit", "@model.lora")
        lora = "model.lora.model = @model.vit()\nmodel.lora.rank = 2\nmodel.lora.alpha = 8.0\n"
        patch.setitem(FAMILIES, "adapted", text + lora)  # type: ignore[arg-type]
        return made("adapted", max_batch=2)


def applied(model: Model, *transforms: Any) -> Any:
    return transformed(model.source, model.live, [(type(t).__name__.lower(), t) for t in transforms], 16)


@pytest.mark.parametrize(
    "transform", [Cast(), Cast(dtype="float16"), Int8(), INT4, Prune(), Prune(pattern="2:4")], ids=str
)
def test_sound_ones_pass_and_their_bounds_are_tight(transform: Any, vit: Model) -> None:
    found, live, (effect,) = applied(vit, transform)
    assert 0.8 < effect.of_bound <= 1.0 + 1e-6
    assert live is not vit.live
    assert found.dtype == "float32"


def test_merged_adapters_are_compared_with_the_model_that_has_them(adapted: Model) -> None:
    _, live, (effect,) = applied(adapted, LoRAMerge())
    assert live is adapted.live
    assert effect.of_bound is None
    assert effect.outputs.within(2e-5)


@pytest.mark.parametrize("further", [(), (Int8(),)], ids=["alone", "before int8"])
def test_adapters_merged_with_another_scale_are_refused(
    further: tuple[Any, ...], adapted: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoRA, "merged", lambda self, variables: merged(variables, 1.1 * self.scale))
    with pytest.raises(ExportError, match=r"loramerge changes what the model computes: outputs are off by .*2e-05"):
        applied(adapted, LoRAMerge(), *further)


def test_adapters_that_are_stored_in_another_form_are_not_merged(adapted: Model) -> None:
    with pytest.raises(ExportError, match="name lora_merge before what stores them so"):
        applied(adapted, Cast(), LoRAMerge())


def wrong_group(monkeypatch: pytest.MonkeyPatch) -> None:
    right = quantised._stored

    def stored(*arguments: Any) -> Any:
        values, scales, form = right(*arguments)
        return values, np.roll(scales, 1, axis=1), form

    monkeypatch.setattr(quantised, "_stored", stored)


def truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    down = lambda weight, dtype: (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(dtype)
    monkeypatch.setattr("assay_export.transforms.cast._cast", down)


def largest_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prune._largest
    monkeypatch.setattr(prune, "_largest", lambda size, sparsity: right(-size, sparsity))


def embeddings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prune.changed
    zeros = lambda weights: {path: 0 * w for path, w in weights.items() if path.endswith("bias")}
    monkeypatch.setattr(prune, "changed", lambda weights, changes: right(weights, {**changes, **zeros(weights)}))


@pytest.mark.parametrize(
    ("fault", "transform", "message"),
    [
        (wrong_group, INT4, r"int4: \S+kernel is off by .* times what it may be off by"),
        (truncated, Cast(), r"cast: \S+ is off by (1\.|2).* times what it may be off by"),
        (largest_pruned, Prune(), r"prune: \S+kernel is off by .* times what it may be off by"),
        (embeddings_too, Prune(), r"prune: \S+bias is another one, and was to stay as it is"),
    ],
)
def test_weights_further_off_than_can_be_are_refused(
    fault: Any, transform: Any, message: str, vit: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(ExportError, match=message):
        applied(vit, transform)


@dataclasses.dataclass(frozen=True)
class OtherPrograms:
    """Its weights are right, and its programs take others."""

    def apply(self, source: Exported) -> Exported:
        found = Int8().apply(source)
        (program,) = found.programs
        halved = lambda weights, inputs: program.function(
            {path: w / 2 if path.endswith("scales") else w for path, w in weights.items()}, inputs
        )
        return dataclasses.replace(found, programs=[dataclasses.replace(program, function=halved)])

    def bounds(self, source: Exported) -> Any:
        return Int8().bounds(source)


def test_programs_that_compute_with_other_weights_are_refused(vit: Model) -> None:
    with pytest.raises(ExportError, match="otherprograms's programs compute something else than its weights say"):
        applied(vit, OtherPrograms())


def test_what_is_transformed_must_be_the_model_first(vit: Model) -> None:
    path = "blocks/0/attention/query/kernel"
    source = dataclasses.replace(vit.source, weights={**vit.source.weights, path: -vit.source.weights[path]})
    with pytest.raises(ExportError, match="what int8 is applied to computes something else than its model"):
        transformed(source, vit.live, [("int8", Int8())], 16)


def test_the_same_holds_for_an_artifact(vit: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from assay_export.cases import cases

    kept = [(case, np.asarray(vit.live.forward(case.inputs))) for case in cases(vit.source)]
    again = dataclasses.replace(vit.source, model=None)
    _, found, (effect,) = of_artifact(again, kept, [("int4", INT4)])
    assert 0.8 < effect.of_bound <= 1.0 + 1e-6
    assert not np.array_equal(found[0][1], kept[0][1])
    wrong_group(monkeypatch)
    with pytest.raises(ExportError, match="times what it may be off by"):
        of_artifact(again, kept, [("int4", INT4)])
