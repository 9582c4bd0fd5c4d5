"""A model beside a copy of itself that stays as it was, for objectives that must not stray far from where they began."""

import dataclasses
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array

from assay.data.spec import DataSpec
from assay.kinds import InitialValues, Model
from assay.network import freeze
from assay.outcome import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithReference:
    """A trained `policy` and a frozen `reference` that begins equal to it, as objective.dpo and objective.grpo need them.

    The reference is placed on the devices as the policy is, and is not in checkpoints.

    model: the model; with model.pretrained both begin with what it holds.
    """

    model: Model

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Pair":
        """The pair. Raises what the model raises for data that do not fit."""
        return Pair(self.model.build(spec, rngs))

    def initial_values(self, spec: DataSpec) -> dict[str, np.ndarray]:
        """The model's own, for both."""
        if not isinstance(self.model, InitialValues):
            return {}
        values = self.model.initial_values(spec)
        return {f"{part}/{path}": value for part in ("policy", "reference") for path, value in values.items()}


class Pair(nnx.Module):
    """The network of `WithReference`. Called, and when it samples, it is the policy."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.reference = policy, freeze(nnx.clone(policy))

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Array:
        """The policy's output."""
        return self.policy(batch, train=train, rngs=rngs)

    def init_cache(self, *args: Any) -> Any:
        """The policy's cache (see model.transformer)."""
        return self.policy.init_cache(*args)

    def decode(self, *args: Any) -> Any:
        """The policy's next logits and cache."""
        return self.policy.decode(*args)
