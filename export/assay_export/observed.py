"""What an objective gives its network: the objective is called with a stand-in that sees every batch on its way.

A diffusion objective shows its network noised images, a preference objective two rows of each example; only the objective knows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from assay.errors import ConfigError
from assay.kinds import Objective
from assay.outcome import Batch, Outcome

Answer = Callable[[Mapping[str, Any]], Any]


class StandIn:
    """The network, called through `answer`; everything else of it is as it was."""

    def __init__(self, module: Any, answer: Answer) -> None:
        self._module, self._answer = module, answer

    def __call__(self, batch: Batch, *, train: bool, rngs: Any) -> Any:
        """The answer for a batch."""
        return self._answer(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Asked(Exception):
    """Ends an objective once it has asked the network: what it would do with the answer is not computed."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        self.shown = shown


def asked(objective: Objective, module: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that the objective gives the network first, in evaluation; those of `batch` where it calls it in another way."""

    def answer(shown: Mapping[str, Any]) -> Any:
        raise _Asked(shown)

    stand_in: Any = StandIn(module, answer)
    found = batch
    try:
        objective(stand_in, batch, train=False, rngs=None)
    except _Asked as seen:
        found = seen.shown
    except ConfigError:  # it wants a network of a class, as a Bayesian one, and no stand-in
        pass
    return {name: value for name, value in found.items() if name != "mask"}


def asked_shapes(
    objective: Objective, module: Callable[[Any], Any], weights: Any, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The same of shapes alone. module: weights -> network."""
    return jax.eval_shape(lambda weights, batch: asked(objective, module(weights), batch), weights, batch)


def outcome_with(objective: Objective, module: Any, batch: Mapping[str, Any], answer: Answer) -> Outcome | None:
    """The objective's outcome where `answer` takes the network's place, or None for one that calls the network in another way."""
    called: list[bool] = []

    def noted(shown: Mapping[str, Any]) -> Any:
        called.append(True)
        return answer(shown)

    stand_in: Any = StandIn(module, noted)
    try:
        outcome = objective(stand_in, batch, train=False, rngs=None)
    except ConfigError:
        return None
    return outcome if called else None
