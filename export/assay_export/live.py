"""The model as it is in its run: what the gate compares artifacts with. Nothing here goes by way of the exported programs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from assay.data.blocks import read
from assay.errors import DataError
from assay.evaluate.evaluate import values_of
from assay.kinds import Source
from assay.outcome import Outcome
from assay.plan.plan import Plan
from assay_export.observed import asked, outcome_with
from assay_export.serve import trim
from assay_kernels import using

ROWS = 8
PRECISION = "highest"
"""Of matrix products: what artifacts are compared with is float32 where it is called so, and not the TF32 that a GPU would take for it."""
Call = Callable[[Mapping[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Loss and metrics over examples, by name, of each of several networks.

    turned: share of the items, by their weight, of which the first network's likeliest class is another than the last one's.
    """

    values: Sequence[Mapping[str, float]]
    turned: float
    examples: int


@dataclasses.dataclass(frozen=True)
class Live:
    """A checkpoint's network, its objective and metrics. variables: (params, frozen, stats) that evaluation uses."""

    plan: Plan
    variables: tuple[Any, Any, Any]

    @functools.cached_property
    def module(self) -> Any:
        """The network."""
        params, frozen, stats = jax.device_put(self.variables, jax.devices()[0])
        return self.plan.network.merge(params, stats, self.plan.experiment.compute_dtype, frozen)

    @functools.cached_property
    def forward(self) -> Call:
        """Its output for what the objective gives it, with the kernels of the experiment, compiled."""
        variables = jax.device_put(self.variables, jax.devices()[0])
        return lambda inputs: self._compiled(variables, self._whole(inputs))

    def forget(self) -> None:
        """Free what `forward` has compiled, for every shape that it was called with."""
        self._compiled.clear_cache()
        trim()

    @functools.cached_property
    def _compiled(self) -> Any:
        e = self.plan.experiment

        def call(variables: Any, batch: Any) -> Any:
            params, frozen, stats = variables
            with using(*e.kernels), jax.default_matmul_precision(PRECISION):
                return self.plan.network.merge(params, stats, e.compute_dtype, frozen)(batch, train=False, rngs=None)

        return jax.jit(call)

    def _whole(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs, with real rows of all others that the objective gives the network: it may want their shapes."""
        rows = next(iter(inputs.values())).shape[0]
        others = {name: x for name, x in self._shown.items() if name not in inputs}
        return {**inputs, **{name: np.take(x, np.arange(rows) % len(x), axis=0) for name, x in others.items()}}

    @functools.cached_property
    def _shown(self) -> dict[str, np.ndarray]:
        return self.examples(ROWS)

    @property
    def split(self) -> str:
        """The evaluation split."""
        return next(iter(self.plan.experiment.evaluate_splits))

    def examples(self, rows: int) -> dict[str, np.ndarray]:
        """The first rows of the evaluation split, as the objective shows them to the network."""
        batch = next(self.batches(rows, rows))
        with using(*self.plan.experiment.kernels):
            found = asked(self.plan.experiment.objective, self.module, batch)
        return {name: np.asarray(x) for name, x in found.items()}

    def batches(self, size: int, most: int) -> Iterator[dict[str, np.ndarray]]:
        """The first `most` examples of the evaluation split, at most `size` at once, with `mask`. Raises DataError for an empty one."""
        source: Source = self.plan.experiment.dataset.source(self.split)
        count = min(most, len(source))
        if not count:
            raise DataError(f"the split '{self.split}' has no examples, and an artifact is checked on real ones")
        for start in range(0, count, size):
            indices = np.arange(start, min(start + size, count))
            yield {**read(source, indices), "mask": np.ones(len(indices), np.bool_)}

    def scores(self, calls: Sequence[Call], size: int, most: int) -> Scores | None:
        """Over the first `most` examples, `size` at once, with each call in the network's place in turn.

        None for an objective that calls the network in another way, as a Bayesian one.
        """
        e, merged, count, turned = self.plan.experiment, list[Any](), 0, 0.0
        for batch in self.batches(size, most):
            found = [outcome_with(e.objective, self.module, batch, call) for call in calls]
            outcomes = [outcome for outcome in found if outcome is not None]
            if len(outcomes) < len(calls):
                return None
            states = [self._state(outcome) for outcome in outcomes]
            merged = [self._merged(*pair) for pair in zip(merged, states, strict=True)] if merged else states
            turned += _turned(outcomes[0], outcomes[-1])
            count += len(batch["mask"])
        weight = float(merged[-1]["loss"]["weight"])
        return Scores([values_of(e, state) for state in merged], turned / weight if weight else 0.0, count)

    def _state(self, outcome: Outcome) -> Any:
        """What the metrics and the loss keep of a batch."""
        total, weight = outcome.total()
        found: Any = {str(i): m.update(outcome, self.plan.spec) for i, m in enumerate(self.plan.experiment.metrics)}
        return jax.tree.map(lambda x: np.asarray(x, np.float64), found | {"loss": {"total": total, "weight": weight}})

    def _merged(self, a: Any, b: Any) -> Any:
        loss = {"loss": {k: a["loss"][k] + b["loss"][k] for k in a["loss"]}}
        return loss | {str(i): m.merge(a[str(i)], b[str(i)]) for i, m in enumerate(self.plan.experiment.metrics)}


def _turned(one: Outcome, other: Outcome) -> float:
    """The weight of the items whose likeliest class is another one."""
    if one.logits is None or other.logits is None:
        return 0.0
    differ = np.argmax(np.asarray(one.logits), -1) != np.argmax(np.asarray(other.logits), -1)
    return float(np.sum(np.asarray(other.weights, np.float64) * differ))
