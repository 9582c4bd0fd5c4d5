"""What evaluation uses of a checkpoint is read alone, and is what the whole checkpoint has."""

import jax
import numpy as np
import pytest

from assay import config
from assay.evaluate.evaluator import Evaluator
from assay.train.launch import evaluated, restored, start

GIN = """
experiment.dataset = @dataset.digits()
experiment.objective = @objective.classification()
experiment.metrics = [@metric.accuracy()]
experiment.model = @model.mlp()
model.mlp.hidden = (8,)
experiment.parallelism = @parallelism.data_parallel()
parallelism.data_parallel.data = 1
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-2
experiment.trackers = []
experiment.steps = 3
experiment.batch_size = 8
experiment.ema_decay = {decay}
"""


@pytest.mark.parametrize("decay", [None, 0.5])
def test_the_part_that_is_evaluated_is_read_alone(decay: float | None, tmp_path) -> None:
    run = start(config.load_text(GIN.format(decay=decay), "digits.gin"), tmp_path).run
    plan, whole, step = restored(run)
    _, part, same = evaluated(run)
    assert step == same == 3
    assert jax.tree.leaves(part.optimizer) == []
    assert (part.params == {}) == (decay is not None)
    if decay is not None:
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (whole.params, whole.ema)), strict=True))
    for one, other in zip(*map(jax.tree.leaves, (whole.variables, part.variables)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert Evaluator(plan)("validation", part) == Evaluator(plan)("validation", whole)
