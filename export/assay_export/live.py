"""The model as it is in its run: what the gate compares artifacts with. Nothing here goes by way of the exported programs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from assay.data.blocks import read
from assay.errors import DataError
from assay.evaluate.evaluate import values_of
from assay.kinds import Source
from assay.plan.plan import Plan
from assay_export.observed import asked, outcome_with
from assay_kernels import using

ROWS = 8
Call = Callable[[Mapping[str, Any]], Any]


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
        e = self.plan.experiment

        @jax.jit
        def call(variables: Any, batch: Any) -> Any:
            params, frozen, stats = variables
            with using(*e.kernels):
                return self.plan.network.merge(params, stats, e.compute_dtype, frozen)(batch, train=False, rngs=None)

        variables = jax.device_put(self.variables, jax.devices()[0])
        return lambda inputs: call(variables, self._whole(inputs))

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

    def metrics(self, call: Call, size: int, most: int) -> tuple[dict[str, float], int] | None:
        """(loss and metrics over the first `most` examples with `call` in the network's place, the number of examples).

        None for an objective that calls the network in another way, as a Bayesian one.
        """
        e, merged, count = self.plan.experiment, None, 0
        for batch in self.batches(size, most):
            outcome = outcome_with(e.objective, self.module, batch, call)
            if outcome is None:
                return None
            total, weight = outcome.total()
            state: Any = {str(i): m.update(outcome, self.plan.spec) for i, m in enumerate(e.metrics)}
            state = jax.tree.map(
                lambda x: np.asarray(x, np.float64), state | {"loss": {"total": total, "weight": weight}}
            )
            merged = state if merged is None else self._merged(merged, state)
            count += len(batch["mask"])
        assert merged is not None
        return values_of(e, merged), count

    def _merged(self, a: Any, b: Any) -> Any:
        loss = {"loss": {k: a["loss"][k] + b["loss"][k] for k in a["loss"]}}
        return loss | {str(i): m.merge(a[str(i)], b[str(i)]) for i, m in enumerate(self.plan.experiment.metrics)}
