"""Regression's squared errors, and the L2 term that any objective may have, against closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.outcome import Batch
from assay.testing.examples import SPECS, batch_of
from assay.testing.objective import ObjectiveKit
from assay_plugins.models.mlp import MLP
from assay_plugins.objectives.classification import Classification
from assay_plugins.objectives.regression import Regression
from assay_plugins.objectives.with_l2 import WithL2

TARGETS = DataSpec({"features": ArraySpec((6,), "float32"), "target": ArraySpec((2,), "float32")})


class Linear(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        draw = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(draw(rngs.params(), (inputs, outputs)), axes=("features", None))
        self.bias = nnx.Param(jnp.zeros((outputs,)), axes=(None,))

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return batch["features"] @ self.kernel[...] + self.bias[...][None, :]


class Numbers:
    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> Linear:
        return Linear(6, 2, rngs)


def rows() -> dict[str, jax.Array]:
    return {k: jnp.asarray(v) for k, v in batch_of(TARGETS, 5).items()}


def test_the_loss_is_the_squared_error() -> None:
    module, batch = Linear(6, 2, nnx.Rngs(0)), rows()
    expected = np.square(np.asarray(batch["features"]) @ module.kernel[...] - batch["target"])
    outcome = Regression()(module, batch, train=False, rngs=None)
    np.testing.assert_allclose(outcome.losses, expected, rtol=1e-5)
    total, weight = outcome.total()
    np.testing.assert_allclose(total / weight, np.mean(expected), rtol=1e-5)


def test_one_number_needs_no_axis_of_its_own() -> None:
    module, batch = Linear(6, 1, nnx.Rngs(0)), rows()
    batch["target"] = batch["target"][:, 0]
    outcome = Regression()(module, batch, train=False, rngs=None)
    expected = np.square((np.asarray(batch["features"]) @ module.kernel[...])[:, 0] - batch["target"])
    np.testing.assert_allclose(outcome.losses, expected, rtol=1e-5)


def test_targets_that_are_missing_do_not_count() -> None:
    module, batch = Linear(6, 2, nnx.Rngs(0)), rows()
    batch["target"] = batch["target"].at[1, 0].set(jnp.nan)

    def mean(module: Any) -> Any:
        total, weight = Regression()(module, batch, train=True, rngs=None).total()
        return total / weight

    value, gradients = nnx.value_and_grad(mean)(module)
    error = np.asarray(batch["features"]) @ module.kernel[...] - batch["target"]
    np.testing.assert_allclose(value, np.nanmean(np.square(error)), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_another_number_of_predictions() -> None:
    with pytest.raises(ConfigError, match=r"the model's output has shape \(5, 3\), the dataset's `target` \(5, 2\)"):
        Regression()(Linear(6, 3, nnx.Rngs(0)), rows(), train=False, rngs=None)


def mean_of(objective: Any, module: Any, *, train: bool = True) -> Any:
    def mean(module: Any) -> Any:
        total, weight = objective(module, rows(), train=train, rngs=None).total()
        return total / weight

    return nnx.value_and_grad(mean)(module)


def test_the_term_and_its_gradient() -> None:
    module = Linear(6, 2, nnx.Rngs(0))
    module.bias[...] = jnp.asarray([1.0, -2.0])
    plain, gradient = mean_of(Regression(), module)
    loss, with_term = mean_of(WithL2(objective=Regression(), weight=0.3, parameters=["ker*"]), module)
    kernel = np.asarray(module.kernel[...])
    np.testing.assert_allclose(loss - plain, 0.15 * np.sum(kernel**2), rtol=1e-4)
    np.testing.assert_allclose(with_term["kernel"][...] - gradient["kernel"][...], 0.3 * kernel, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(with_term["bias"][...], gradient["bias"][...], rtol=1e-5)
    everything, _ = mean_of(WithL2(objective=Regression(), weight=0.3), module)
    np.testing.assert_allclose(everything - loss, 0.15 * 5.0, rtol=1e-4)


def test_evaluation_is_without_the_term() -> None:
    module, objective = Linear(6, 2, nnx.Rngs(0)), WithL2(objective=Regression(), weight=10.0)
    assert float(mean_of(objective, module, train=False)[0]) == float(mean_of(Regression(), module)[0])
    scalars = objective(module, rows(), train=True, rngs=None).scalars
    np.testing.assert_allclose(scalars["data_loss"], mean_of(Regression(), module)[0], rtol=1e-6)


def test_a_name_that_is_no_parameter() -> None:
    objective = WithL2(objective=Regression(), weight=1.0, parameters=["kernle"])
    with pytest.raises(
        ConfigError, match=r"'kernle' is no parameter .* Did you mean 'kernel'\? There are bias, kernel"
    ):
        mean_of(objective, Linear(6, 2, nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, r"weight = -1\.0: must be at least 0"),
        ({"weight": 1.0, "parameters": []}, r"parameters = \[\]"),
    ],
)
def test_bad_settings(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WithL2(objective=Regression(), **settings)


class TestRegression(ObjectiveKit):
    def plugin(self) -> Any:
        return Regression()

    def model(self) -> Any:
        return Numbers()

    def spec(self) -> DataSpec:
        return TARGETS


class TestWithL2(ObjectiveKit):
    def plugin(self) -> Any:
        return WithL2(objective=Classification(), weight=0.1, parameters=["layers/*"])

    def model(self) -> Any:
        return MLP(hidden=[8])

    def spec(self) -> DataSpec:
        return SPECS["features"]
