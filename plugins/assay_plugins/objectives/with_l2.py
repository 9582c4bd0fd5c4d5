"""L2 regularisation as a term of the loss, of some parameters or of all."""

import dataclasses
import fnmatch
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from assay.errors import ConfigError, did_you_mean
from assay.kinds import Objective
from assay.outcome import Batch, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithL2:
    """Another objective, whose training loss has weight / 2 * (sum of the squares of the parameters) besides.

    The gradient of the term passes through the optimizer, unlike the decoupled weight decay of optimizer.adamw; this is what papers of
    before 2017 mean by L2. Evaluation, and the scalar "data_loss" in training, are without the term. There is no sampling.

    objective: the other one. weight: of the term. parameters: names ("layers/0/kernel") or patterns of them ("layers/0/*").
    """

    objective: Objective
    weight: float
    parameters: Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        """Raise ValueError for a negative weight, or no parameters."""
        if not self.weight >= 0.0:
            raise ValueError(f"weight = {self.weight}: must be at least 0")
        if not self.parameters:
            raise ValueError("parameters = []: name at least one, or '*' for all of them")

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """The objective's outcome; in training, the term is added to every loss, and so to their mean."""
        outcome = self.objective(module, batch, train=train, rngs=rngs)
        if not train:
            return outcome
        total, weight = outcome.total()
        losses = outcome.losses + self.weight / 2 * squares(module, self.parameters)
        scalars = {**outcome.scalars, "data_loss": total / jnp.maximum(weight, 1.0)}
        return dataclasses.replace(outcome, losses=losses, scalars=scalars)


def squares(module: nnx.Module, patterns: Sequence[str]) -> Float[Array, ""]:
    """The sum of the squares of the parameters whose names match a pattern, in fp32. Raises ConfigError for one that matches none."""
    found = nnx.to_flat_state(nnx.state(module, nnx.Param))
    values = {"/".join(map(str, path)): variable[...] for path, variable in found}
    chosen: dict[str, Array] = {}
    for pattern in patterns:
        matching = fnmatch.filter(values, pattern)
        if not matching:
            raise ConfigError(
                f"objective.with_l2.parameters: '{pattern}' is no parameter of the model.{did_you_mean(pattern, values)} "
                f"There are {', '.join(values)}"
            )
        chosen |= {name: values[name] for name in matching}
    return sum((jnp.sum(jnp.square(v.astype(jnp.float32))) for v in chosen.values()), start=jnp.zeros((), jnp.float32))
