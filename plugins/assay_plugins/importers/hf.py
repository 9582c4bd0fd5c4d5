"""Models in Hugging Face's layout: a directory with config.json and safetensors files. Neither torch nor transformers is needed."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from assay.errors import ConfigError, did_you_mean
from assay.imported import Imported
from assay.kinds import Model
from assay_plugins.importers import bert, gpt2, llama, vit
from assay_plugins.importers.rules import Converted, Plan, check
from assay_plugins.importers.settings import Settings, settings_in
from assay_plugins.importers.tensors import Tensors, tensors_in
from assay_plugins.models.bert import BERT
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.vit import ViT

FAMILIES: Mapping[str, Callable[[Settings, Tensors], Plan]] = {
    "bert": bert.plan,
    "gpt2": gpt2.plan,
    "llama": llama.plan,
    "mistral": llama.plan,
    "mixtral": llama.plan,
    "qwen2": llama.plan,
    "qwen3": llama.plan,
    "vit": vit.plan,
}

MODELS: Mapping[str, Callable[..., Model]] = {"bert": BERT, "transformer": Transformer, "vit": ViT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HF:
    """BERT, GPT-2, Llama, Mistral, Mixtral, Qwen 2, Qwen 3 and ViT, as the transformers library saves them.

    Structure and sizes come from config.json; rates of dropout, which belong to training, are not taken. Values of 16 bits become float32.
    """

    def read(self, path: Path) -> Imported:
        """The model in the directory `path`; arrays are read when they are asked for.

        Raises DataError for files and tensors that are missing, damaged or too many, ConfigError for what Assay cannot represent.
        """
        settings = settings_in(path)
        family = str(settings.values.get("model_type"))
        if family not in FAMILIES:
            raise ConfigError(
                f"{settings.path}: model_type = {family!r} cannot be imported; what can: {', '.join(FAMILIES)}."
                + did_you_mean(family, FAMILIES)
            )
        if settings.values.get("quantization_config"):
            raise ConfigError(f"{settings.path}: quantised models are not read; fetch the model in 16 or 32 bits")
        tensors = tensors_in(path)
        plan = FAMILIES[family](settings, tensors)
        _try(plan, settings.path)
        notes = check(plan, tensors, str(path))
        return Imported(_lines(plan), Converted(plan.rules, tensors), plan.vocab_size, notes)


def _try(plan: Plan, path: Path) -> None:
    """Raise ConfigError for settings that the model refuses."""
    try:
        MODELS[plan.model](**plan.options)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _lines(plan: Plan) -> str:
    """The gin lines that configure the model."""
    settings = [f"model.{plan.model}.{name} = {value!r}" for name, value in plan.options.items()]
    return "\n".join([f"experiment.model = @model.{plan.model}()", *settings])
