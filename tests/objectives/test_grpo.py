"""GRPO: its gradient against the policy gradient in float64, its rollouts against the model, and learning from rewards alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.errors import ConfigError
from assay.network import make_network
from assay.parallel.constrain import layout as active_layout
from assay.parallel.layout import make_layout
from assay_plugins.datasets.arithmetic import Arithmetic
from assay_plugins.metrics.accuracy import ExactMatch
from assay_plugins.models.mlp import MLP
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.with_reference import WithReference
from assay_plugins.objectives.grpo import EPSILON, GRPO, advantages
from assay_plugins.objectives.rollouts import rollouts
from assay_plugins.parallelism.data_parallel import DataParallel

SMALL = Transformer(layers=1, width=16, heads=2)
SPEC = Arithmetic().spec()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Even(GRPO):
    """Rewards completions by their first token."""

    def reward(self, completions, batch):
        return (completions[:, 0] % 2).astype(jnp.float32)


@pytest.fixture(scope="module")
def batch():
    rows = Arithmetic().source("train").gather(np.arange(8))
    return {k: jnp.asarray(v) for k, v in rows.items()} | {"mask": jnp.ones(8, bool)}


@pytest.fixture(scope="module")
def network():
    return make_network(SMALL, SPEC)


@pytest.fixture(scope="module")
def params(network):
    drawn = network.init(jax.random.key(0))[0]
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), drawn)


def test_rollouts_are_drawn_from_the_model_s_distribution(network, params, batch) -> None:
    # Two tokens after one prompt, many times; their joint frequencies against the model's own probabilities without cache.
    module, prompt = network.merge(params, {}), batch["prompt"][:1]
    drawn = np.asarray(
        jax.jit(rollouts, static_argnums=2)(module, jnp.repeat(prompt, 20000, 0), 2, 0.7, jax.random.key(0))
    )
    vocab = SPEC.vocab_size
    log_p = lambda tokens: jax.nn.log_softmax(module({"inputs": tokens}, train=False, rngs=None)[:, -1] / 0.7)
    first = np.exp(log_p(prompt))[0]
    second = np.exp(log_p(jnp.concatenate([jnp.repeat(prompt, vocab, 0), jnp.arange(vocab)[:, None]], 1)))
    joint = (first[:, None] * second).reshape(-1)
    found = np.bincount(drawn[:, 0] * vocab + drawn[:, 1], minlength=vocab**2) / len(drawn)
    assert np.abs(found - joint).max() < 5 * np.sqrt(joint.max() / len(drawn))
    chi2 = len(drawn) * ((found - joint) ** 2 / joint)[joint * len(drawn) > 5].sum()
    assert chi2 < vocab**2 + 5 * np.sqrt(2 * vocab**2)


def test_the_gradient_is_the_policy_gradient_of_normalised_rewards(network, params, batch) -> None:
    objective, rngs = Even(group=4), lambda: nnx.Rngs(5)

    def loss(params):
        total, weight = objective(network.merge(params, {}), batch, train=True, rngs=rngs()).total()
        return total / weight

    prompt = jnp.repeat(batch["prompt"], 4, 0)
    drawn = rollouts(network.merge(params, {}), prompt, 2, 1.0, rngs().rollouts())
    rewards = np.asarray(drawn[:, 0] % 2, np.float64).reshape(8, 4)
    assert 0 < rewards.mean() < 1
    normalised = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + EPSILON)

    def expected(params):
        logits = network.merge(params, {})(
            {"inputs": jnp.concatenate([prompt, drawn[:, :1]], 1)}, train=True, rngs=None
        )
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits[:, -2:]), drawn[..., None], -1)[..., 0]
        return -jnp.mean(log_p * normalised.reshape(-1)[:, None].astype(np.float32))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6),
        jax.grad(loss)(params),
        jax.grad(expected)(params),
    )


def test_groups_without_a_difference_teach_nothing() -> None:
    found = advantages(jnp.asarray([[1.0, 1.0, 1.0], [0.0, 0.0, 3.0]]))
    assert found[0].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(found[1], np.asarray([-1, -1, 2]) / np.sqrt(2), rtol=1e-3)


def test_the_divergence_from_the_reference_is_0_at_the_start_and_grows_away_from_it(batch) -> None:
    network = make_network(WithReference(model=SMALL), SPEC)
    params, frozen = network.init(jax.random.key(0))[0], network.init_frozen(jax.random.key(0))
    call = lambda p: GRPO(kl=0.5)(network.merge(p, {}, frozen=frozen), batch, train=True, rngs=nnx.Rngs(0))
    assert float(call(params).scalars["kl"]) == pytest.approx(0.0, abs=1e-6)
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), params)
    assert float(call(moved).scalars["kl"]) > 0.01


def test_eight_devices_draw_and_learn_as_one(network, params, batch) -> None:
    layout = make_layout(DataParallel())

    def loss(params, batch):
        total, weight = GRPO(group=4)(network.merge(params, {}), batch, train=True, rngs=nnx.Rngs(5)).total()
        return total / weight

    def divided(params, batch):
        with active_layout(layout.sharding):
            return loss(params, batch)

    rows = {k: jax.device_put(v, layout.batch(v.ndim)) for k, v in batch.items()}
    one, many = jax.jit(loss)(params, batch), jax.jit(divided)(jax.device_put(params, layout.replicated), rows)
    np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-6)


def test_exact_match_is_what_greedy_decoding_gets_right(network, params, batch) -> None:
    module = network.merge(params, {})
    outcome = GRPO()(module, batch, train=False, rngs=None)
    state = ExactMatch().update(outcome, SPEC)
    greedy = rollouts(module, batch["prompt"], 2, 1e-6, jax.random.key(0))
    assert float(state["rows"]) == 8
    assert float(state["right"]) == np.all(np.asarray(greedy) == np.asarray(batch["answer"]), 1).sum()
    perfect = dataclasses.replace(outcome, logits=jax.nn.one_hot(outcome.targets, SPEC.vocab_size))
    assert ExactMatch().compute(jax.device_get(ExactMatch().update(perfect, SPEC)))["exact_match"] == 1.0
    one_wrong = dataclasses.replace(perfect, targets=perfect.targets.at[3, -1].add(1))
    assert ExactMatch().compute(jax.device_get(ExactMatch().update(one_wrong, SPEC)))["exact_match"] == 7 / 8


def test_a_model_that_cannot_generate_is_refused() -> None:
    digits = MLP(hidden=(4,)).build(make_digits_spec(), nnx.Rngs(0))
    with pytest.raises(ConfigError, match="Perceptron cannot generate: choose a model with a cache"):
        rollouts(digits, jnp.zeros((1, 4), jnp.int32), 2, 1.0, jax.random.key(0))


@pytest.mark.parametrize("fields", [{"group": 1}, {"temperature": 0.0}, {"kl": -1.0}])
def test_settings_out_of_range(fields) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        GRPO(**fields)


def make_digits_spec():
    from assay_plugins.datasets.digits import Digits

    return Digits().spec()
