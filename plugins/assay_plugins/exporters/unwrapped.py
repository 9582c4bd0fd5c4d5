"""A model without what was put around it for training: its own parameters, adapters merged into them."""

from collections.abc import Mapping
from typing import Any

from assay.kinds import Model
from assay_plugins.models.lora import LoRA
from assay_plugins.models.pretrained import Pretrained
from assay_plugins.models.with_reference import WithReference


def unwrapped(model: Model, arrays: Mapping[str, Any]) -> tuple[Model, Mapping[str, Any]]:
    """(the model within model.pretrained, model.lora and model.with_reference, its parameters).

    arrays: all of the model's variables by path; of an adapted model with its Frozen ones.
    """
    if isinstance(model, Pretrained):
        return unwrapped(model.model, arrays)
    if isinstance(model, LoRA):
        return unwrapped(model.model, model.merged(arrays))
    if isinstance(model, WithReference):
        policy = "policy/"
        kept = {path.removeprefix(policy): value for path, value in arrays.items() if path.startswith(policy)}
        return unwrapped(model.model, kept)
    return model, arrays
