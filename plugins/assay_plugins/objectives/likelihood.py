"""Log-probabilities of tokens and rows under a language model, and under the reference beside it."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.errors import ConfigError
from assay_plugins.objectives.cross_entropy import cross_entropy


def token_log_probabilities(
    logits: Float[Array, "*items vocab"], targets: Int[Array, "*items"]
) -> Float[Array, "*items"]:
    """log p of each target in nats, fp32; 0 for negative targets."""
    return jnp.where(targets >= 0, -cross_entropy(logits, targets)[0], 0.0)


def row_log_probabilities(
    module: Any,
    inputs: Int[Array, "batch seq"],
    targets: Int[Array, "batch seq"],
    *,
    train: bool,
    rngs: nnx.Rngs | None,
) -> Float[Array, " batch"]:
    """log p of each row's targets together, in nats, fp32; negative targets do not count."""
    return jnp.sum(token_log_probabilities(module({"inputs": inputs}, train=train, rngs=rngs), targets), axis=-1)


def reference_of(module: Any, objective: str) -> Any:
    """The frozen model beside the trained one. Raises ConfigError for a module without."""
    if not hasattr(module, "reference"):
        raise ConfigError(
            f"objective.{objective} needs a reference model: set experiment.model = @model.with_reference() "
            "and model.with_reference.model to the model itself"
        )
    return module.reference
