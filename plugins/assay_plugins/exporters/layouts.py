"""The family of Hugging Face's layout that expresses a model exactly, or which of the model's options none does.

A config.json is written for each family that might do, read back by the importer, and the model that the importer makes of it is compared
with the model that is there, option by option. What differs is what the family cannot say. So an option that a model gains later is refused
until both directions know it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.data.spec import DataSpec
from assay.errors import ExportError
from assay.kinds import Model
from assay_plugins.exporters import decoders, encoders
from assay_plugins.importers.hf import FAMILIES, MODELS
from assay_plugins.importers.rules import Plan, Shape
from assay_plugins.importers.settings import Settings
from assay_plugins.importers.tensors import Tensors
from assay_plugins.models.bert import BERT
from assay_plugins.models.block import Place
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.vit import ViT

NEUTRAL = ("dropout", "remat", "expert_dispatch", "vocab_size", "vocab_multiple")
"""Options that change no output of a trained model: for training only, or padding, which is left out."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """config: of config.json. plan: how a model in it is imported, the rules for exporting it too."""

    config: Mapping[str, Any]
    plan: Plan


def layout_of(model: Model, spec: DataSpec, shapes: Mapping[str, Shape]) -> Layout:
    """The layout of `model` on data of `spec`, whose parameters have `shapes`.

    Raises ExportError for a model that no family expresses, naming the options in the way of the nearest family.
    """
    if type(model) not in MODELS.values():
        raise ExportError(
            f"{type(model).__qualname__} cannot be written in Hugging Face's layout; what can: "
            f"{', '.join(f'model.{name}' for name in MODELS)}, also within model.pretrained, model.lora and model.with_reference"
        )
    positions = shapes.get("positions/embedding")
    ours = _options(model, positions[0] if positions else None)
    nearest: tuple[str, dict[str, tuple[Any, Any]]] | None = None
    refused = ""
    for family, config, tensors in _candidates(model, spec, shapes):
        plan = FAMILIES[family](Settings(config, Path("config.json")), tensors)
        try:
            read: Any = MODELS[plan.model](**plan.options)
        except ValueError as error:  # sizes that the family lacks the options for
            refused = f"{family}: {error}"
            continue
        theirs = _options(read, read.context if positions else None)
        differ = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
        if not differ:
            return Layout(config, plan)
        if nearest is None or len(differ) < len(nearest[1]):
            nearest = family, differ
    raise (
        _refusal(model, *nearest)
        if nearest
        else ExportError(f"{_name(model)} cannot be written in Hugging Face's layout; {refused}")
    )


def _refusal(model: Model, family: str, differ: Mapping[str, tuple[Any, Any]]) -> ExportError:
    """What is in the way."""
    lines = [f"  {option} = {ours!r}: {family} has {theirs!r}" for option, (ours, theirs) in differ.items()]
    head = (
        f"{_name(model)} as configured cannot be written in Hugging Face's layout; in the way of {family}, the nearest:"
    )
    return ExportError("\n".join([head, *lines]))


def _name(model: Model) -> str:
    return next(f"model.{name}" for name, plugin in MODELS.items() if plugin is type(model))


def _candidates(
    model: Any, spec: DataSpec, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, dict[str, Any], Tensors]]:
    """(family, config.json, the tensors by which the importer tells variants apart) of each family for the plugin."""
    if isinstance(model, Transformer):
        context = _positions(model, spec, shapes)
        found = [(name, write(model, spec.vocab_size or 0, context)) for name, write in decoders.FAMILIES.items()]
    elif isinstance(model, BERT):
        found = [("bert", encoders.bert(model, spec, _positions(model, spec, shapes)))]
    else:
        found = [("vit", encoders.vit(model, spec))]
    for family, config in found:
        yield family, {"model_type": family, **config}, Tensors(_variant(family, model, spec), {})


def _positions(model: Transformer | BERT, spec: DataSpec, shapes: Mapping[str, Shape]) -> int:
    """How many there are: rows of the table, or where there is none the bound that the model or the data give."""
    table = shapes.get("positions/embedding")
    return table[0] if table else model.context or spec.elements["inputs"].shape[0]


def _variant(family: str, model: Any, spec: DataSpec) -> dict[str, Shape]:
    """The prefix of the names, and the head."""
    prefix = {"gpt2": "transformer", "bert": "bert", "vit": "vit"}.get(family)
    shapes: dict[str, Shape] = {} if prefix is None else {f"{prefix}.": ()}
    if family == "bert" and model.head == "tokens":
        shapes["cls.predictions.bias"] = (spec.vocab_size or 0,)
    elif family in ("bert", "vit"):
        shapes["classifier.weight"] = (spec.num_classes or 0, model.width)
    if family == "bert" and model.head == "classes":
        shapes["bert.pooler.dense.weight"] = (model.width, model.width)
    return shapes


def _options(model: Any, positions: int | None) -> dict[str, Any]:
    """Every option that changes an output, with the value that it has in effect.

    positions: rows of the table of positions, where there is one; without it `context` is only a bound.
    """
    found = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in NEUTRAL}
    found["mlp_width"] = model.block.mlp_width
    if "context" in found:
        found["context"] = positions
    if isinstance(model, Transformer):
        found |= _of_decoder(model)
    if "biases" in found:
        found["biases"] = _places(model)
    return found


def _places(model: Transformer | ViT) -> tuple[str, ...]:
    """Where there are biases; RMSNorm has none, whatever the option says."""
    there: Sequence[Place] = ("qkv", "out", "mlp", "norm") if model.block.norm == "layernorm" else ("qkv", "out", "mlp")
    return tuple(place for place in there if model.block.has_bias(place))


def _of_decoder(model: Transformer) -> dict[str, Any]:
    block, windowed = model.block, [i for i in range(model.layers) if model.block_at(i).window is not None]
    rope = model.position == "rope"
    return {
        "kv_heads": block.kv_heads,
        "head_dim": block.head_dim,
        "rope_theta": model.rope_theta if rope else None,
        "rope_scaling": model.rope_scaling if rope else None,
        "rope_band": model.rope_band if rope else None,
        "window": model.window if windowed else None,
        "window_layers": tuple(windowed),
        "experts_per_token": model.experts_per_token if model.experts else None,
    }
