"""Evaluates splits for a plan: one compiled step, whole splits, the same numbers on any mesh."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from assay.data.pipeline import evaluation_batches
from assay.errors import ConfigError
from assay.evaluate.evaluate import evaluate, make_evaluation_step, values_of
from assay.outcome import Batch
from assay.plan.plan import Plan, batch_shapes
from assay.train.feed import local_rows, to_devices
from assay.train.interrupt import Abandoned
from assay.train.state import TrainState


class Evaluator:
    """Runs an experiment's metrics over splits of its dataset."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        e = plan.experiment
        self._step = make_evaluation_step(e, plan.network, plan.layout)
        self._jitted = jax.jit(self._step, out_shardings=plan.layout.replicated)
        for split in e.evaluate_splits:
            e.dataset.source(split)  # a split that there is not is found before training

    def __call__(
        self, split: str, state: TrainState, abandoned: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """`<split>/<name>` -> value, over the whole split, with the moving average of the parameters where there is one.

        Raises Abandoned as soon as `abandoned`, asked before each batch, says so.
        """
        values = evaluate(self._plan.experiment, self._jitted, state.variables, self._batches(split, abandoned))
        return {f"{split}/{name}": value for name, value in values.items()}

    def batch_size(self, examples: int) -> int:
        """Of a split of `examples`: as few batches as `evaluate_batch_size` allows, of a size that leaves little of the last empty.

        A multiple of the parts that the mesh divides a batch into, and so perhaps larger than was asked for.
        """
        e, shards = self._plan.experiment, self._plan.layout.batch_shards
        most = e.evaluate_batch_size or e.batch_size
        number = max(1, -(-examples // most))
        return max(1, -(-examples // (number * shards))) * shards

    def names(self) -> list[str]:
        """The names that evaluation will give, found from shapes alone."""
        plan = self._plan
        batch = batch_shapes(plan.spec, plan.layout.batch_shards)
        abstract = jax.eval_shape(self._step, (plan.network.params, plan.network.frozen, plan.network.stats), batch)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float64), abstract)
        return [
            f"{split}/{name}" for split in plan.experiment.evaluate_splits for name in values_of(plan.experiment, zeros)
        ]

    def check_best(self) -> None:
        """Raise ConfigError when `keep_best` names a value that evaluation does not give."""
        best = self._plan.experiment.keep_best
        if best is not None and best.removeprefix("+") not in self.names():
            raise ConfigError(
                f"experiment.keep_best = {best!r}: evaluation gives {', '.join(self.names())}; choose one of them"
            )

    def _batches(self, split: str, abandoned: Callable[[], bool]) -> Iterator[Batch]:
        source = self._plan.experiment.dataset.source(split)
        size = self.batch_size(len(source))
        rows = local_rows(self._plan.layout, size)
        for batch in evaluation_batches(source, batch_size=size, rows=rows):
            if abandoned():
                raise Abandoned
            yield to_devices(self._plan.layout, batch)
