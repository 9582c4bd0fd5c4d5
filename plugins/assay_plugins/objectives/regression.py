"""Regression: the squared error of predicted numbers."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from assay.errors import ConfigError
from assay.outcome import Batch, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
    """(prediction - target)^2, one loss for each number of `target`, in its units squared; a target that is NaN does not count."""

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: `target`, floats (batch, ...), and what `module` reads. module(batch, ...) -> as many numbers for each example.

        Raises ConfigError when the module gives another number of them.
        """
        target = batch["target"].astype(jnp.float32)
        predicted = module(batch, train=train, rngs=rngs)
        if predicted.size != target.size:
            raise ConfigError(
                f"objective.regression: the model's output has shape {predicted.shape}, the dataset's `target` {target.shape}; "
                "choose a model that gives one number for each number of the target"
            )
        counts = ~jnp.isnan(target)
        error = jnp.where(counts, predicted.astype(jnp.float32).reshape(target.shape) - target, 0.0)
        return Outcome(jnp.square(error), weights=counts.astype(jnp.float32))
