"""DPO against its formula in float64 and closed-form gradients, and the model with its reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.network import Frozen, make_network
from assay_plugins.datasets.arithmetic import Arithmetic
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.with_reference import WithReference
from assay_plugins.objectives.dpo import DPO, preference_losses

SMALL = Transformer(layers=1, width=16, heads=2)


@pytest.fixture(scope="module")
def batch():
    rows = Arithmetic().source("train").gather(np.arange(6))
    return {k: jnp.asarray(v) for k, v in rows.items()} | {"mask": jnp.ones(6, bool)}


@pytest.fixture(scope="module")
def network():
    return make_network(WithReference(model=SMALL), Arithmetic().spec())


@pytest.fixture(scope="module")
def variables(network):
    """(params moved away from the reference, reference)."""
    key = jax.random.key(0)
    params, _ = network.init(key)
    moved = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)
    return moved, network.init_frozen(key)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_gradients_are_those_of_the_formula(smoothing: float) -> None:
    # As TRL's sigmoid loss writes it: -logsigmoid(beta d) (1 - s) - logsigmoid(-beta d) s.
    chosen, rejected, reference = np.random.default_rng(0).normal(size=(3, 40)) * [[3.0], [3.0], [4.0]]
    beta = 0.3

    def total(chosen, rejected):
        return jnp.sum(preference_losses(beta * (chosen - rejected - reference.astype(np.float32)), smoothing)[0])

    loss, gradients = jax.value_and_grad(total, (0, 1))(chosen.astype(np.float32), rejected.astype(np.float32))
    h = beta * (chosen - rejected - reference)
    sigma = 1 / (1 + np.exp(-h))
    expected = -np.log(sigma) * (1 - smoothing) - np.log(1 - sigma) * smoothing
    slope = beta * (sigma * smoothing - (1 - sigma) * (1 - smoothing))
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradients[0], slope, atol=1e-6)
    np.testing.assert_allclose(gradients[1], -slope, atol=1e-6)


def test_the_objective_takes_log_probabilities_of_whole_answers(network, variables, batch) -> None:
    params, frozen = variables
    outcome = DPO(beta=0.3)(network.merge(params, {}, frozen=frozen), batch, train=True, rngs=nnx.Rngs(0))

    def log_p(tree, prefix: str) -> np.ndarray:
        inner = make_network(SMALL, Arithmetic().spec()).merge(tree, {})
        logits = np.asarray(inner({"inputs": batch[f"{prefix}inputs"]}, train=False, rngs=None), np.float64)
        targets = np.asarray(batch[f"{prefix}targets"])
        log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(log_softmax, np.maximum(targets, 0)[..., None], -1)[..., 0]
        return (chosen * (targets >= 0)).sum(-1)

    h = 0.3 * (
        log_p(params["policy"], "")
        - log_p(frozen["reference"], "")
        - log_p(params["policy"], "rejected_")
        + log_p(frozen["reference"], "rejected_")
    )
    np.testing.assert_allclose(outcome.losses, np.log1p(np.exp(-h)), rtol=1e-4)
    np.testing.assert_allclose(outcome.logits[:, 1], h, atol=1e-4)


def test_at_the_start_nothing_is_preferred_and_the_reference_gets_no_gradient(network, batch) -> None:
    params, frozen = network.init(jax.random.key(1))[0], network.init_frozen(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params["policy"], frozen["reference"])
    call = functools.partial(DPO(), batch=batch, train=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(call(network.merge(params, {}, frozen=frozen)).losses, np.log(2), rtol=1e-6)


def test_the_reference_is_frozen_with_the_policy_s_axes(network) -> None:
    assert jax.tree.structure(network.frozen["reference"]) == jax.tree.structure(network.params["policy"])
    assert network.frozen_axes["reference"] == network.axes["policy"]
    module = WithReference(model=SMALL).build(Arithmetic().spec(), nnx.Rngs(0))
    assert all(type(v) is Frozen for _, v in nnx.to_flat_state(nnx.state(module.reference)))


def test_initial_values_are_given_to_both() -> None:
    class Given(Transformer):
        def initial_values(self, spec: DataSpec) -> dict[str, np.ndarray]:
            return {"norm/scale": np.zeros(16, np.float32)}

    values = WithReference(model=Given(layers=1, width=16, heads=2)).initial_values(Arithmetic().spec())
    assert values.keys() == {"policy/norm/scale", "reference/norm/scale"}
    assert WithReference(model=SMALL).initial_values(Arithmetic().spec()) == {}


def test_a_model_without_reference_is_refused(batch) -> None:
    module = SMALL.build(Arithmetic().spec(), nnx.Rngs(0))
    with pytest.raises(
        ConfigError, match=r"objective.dpo needs a reference model: set experiment.model = @model.with_ref"
    ):
        DPO()(module, batch, train=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("fields", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}])
def test_settings_out_of_range(fields) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        DPO(**fields)
