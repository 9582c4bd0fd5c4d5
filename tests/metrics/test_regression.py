"""The root mean squared error against scikit-learn's."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import root_mean_squared_error

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Outcome
from assay.testing.metric import MetricKit
from assay_plugins.metrics.regression import RMSE


def test_it_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    target, predicted, weights = draw.normal(size=20), draw.normal(size=20), draw.random(20)
    squares = jnp.asarray((target - predicted) ** 2, jnp.float32)
    state = RMSE().update(Outcome(squares, jnp.asarray(weights, jnp.float32)), DataSpec({}))
    found = RMSE().compute({k: np.asarray(v) for k, v in state.items()})["rmse"]
    assert found == pytest.approx(root_mean_squared_error(target, predicted, sample_weight=weights), rel=1e-5)


def test_classes_have_no_squared_error() -> None:
    outcome = Outcome(jnp.ones(2), jnp.ones(2), jnp.ones((2, 3)), jnp.zeros(2, jnp.int32))
    with pytest.raises(ConfigError, match=r"metric rmse needs squared errors.*@objective\.regression"):
        RMSE().update(outcome, DataSpec({}))


def test_an_empty_split_has_no_value() -> None:
    assert math.isnan(RMSE().compute({"squares": np.zeros(()), "weight": np.zeros(())})["rmse"])


class TestRMSE(MetricKit):
    def plugin(self) -> RMSE:
        return RMSE()

    def outcome(self, size: int, seed: int = 0) -> Outcome:
        draw = np.random.default_rng(seed)
        weights = jnp.asarray(draw.random(size) > 0.2, jnp.float32)
        return Outcome(jnp.asarray(draw.normal(size=size) ** 2, jnp.float32), weights)

    def reference(self, outcome: Outcome) -> Mapping[str, float]:
        errors = np.sqrt(np.asarray(outcome.losses))
        return {"rmse": float(root_mean_squared_error(np.zeros_like(errors), errors, sample_weight=outcome.weights))}
