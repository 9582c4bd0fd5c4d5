"""Markov chain Monte Carlo: nothing is optimised; each step moves the chains."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from assay.errors import ConfigError
from assay.outcome import Batch, Outcome
from assay_plugins.bayes.outcome import evaluated
from assay_plugins.bayes.sampled import Sampled


@dataclasses.dataclass(frozen=True, kw_only=True)
class MCMC:
    """One transition of every chain of model.nuts in each step.

    The loss is the potential energy (minus the log density in unconstrained values), averaged over the chains and divided by the
    number of rows; it wanders about a level rather than falling. Evaluation reports minus the log predictive density of each row
    under the draws so far.
    """

    expected_failures: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            "test_losses_and_weights_are_one_for_each_item",
            "test_gradients_are_finite_and_there",
            "test_scalars_have_the_same_names_always",
        ),
        "a posterior is of all rows: other batches are refused",
    )

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: all rows, in training. Scalars: "potential_energy", "acceptance", "step_size", "leapfrog_steps", "divergences".

        Raises ConfigError for a module that is no sampler, and for a part of the rows.
        """
        if not isinstance(module, Sampled):
            raise ConfigError(f"objective.mcmc needs @model.nuts(), and the model made a {type(module).__name__}")
        if not train or rngs is None:
            return evaluated(module, batch)
        scalars = module.advance(batch, rngs.chains())
        losses = jnp.full(batch["mask"].shape, scalars["potential_energy"] / module.problem.examples)
        return Outcome(losses, jnp.ones_like(losses), scalars=scalars)
