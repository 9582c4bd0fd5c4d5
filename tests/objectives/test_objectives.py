"""Objectives against float64, at the edges of floating point, and in what training adds to the plain cross entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import log_loss

from assay.evaluate.sample import Sampler
from assay.kinds import Objective
from assay_plugins.objectives.classification import Classification
from assay_plugins.objectives.next_token import NextToken


def text_batch(seed=0, shape=(3, 5), vocab=7):
    """(logits, targets) with two targets that do not count."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, vocab, shape)
    targets[0, 1] = targets[2, 4] = -1
    return generator.normal(size=(*shape, vocab)).astype(np.float32) * 3, targets.astype(np.int32)


def outcome(objective, logits, labels, *, train=False):
    """What `objective` makes of a module that gives these logits."""
    name = "targets" if isinstance(objective, NextToken) else "label"

    def module(batch, *, train, rngs):
        return jnp.asarray(logits)

    return objective(module, {name: jnp.asarray(labels)}, train=train, rngs=None)


@pytest.mark.parametrize("objective", [NextToken(), Classification()])
def test_plugins_of_their_kind(objective):
    assert isinstance(objective, Objective)
    assert isinstance(objective, Sampler) == isinstance(objective, NextToken)


@pytest.mark.parametrize("train", [False, True])
def test_cross_entropy_of_tokens(train):
    logits, targets = text_batch()
    found = outcome(NextToken(), logits, targets, train=train)
    there = targets >= 0
    expected = -np.take_along_axis(log_softmax(logits.astype(np.float64), -1), np.maximum(targets, 0)[..., None], -1)[
        ..., 0
    ]
    np.testing.assert_allclose(np.asarray(found.losses)[there], expected[there], rtol=1e-5)
    np.testing.assert_array_equal(found.weights, there)
    np.testing.assert_allclose(found.total(), (expected[there].sum(), 13), rtol=1e-6)
    assert (found.logits.shape, found.targets.shape) == (logits.shape, targets.shape)
    assert not found.scalars


def test_classification_is_sklearns_log_loss():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(30, 7)).astype(np.float32), generator.integers(0, 7, 30)
    total, weight = outcome(Classification(), logits, labels).total()
    probabilities = np.exp(log_softmax(logits.astype(np.float64), -1))
    assert float(total / weight) == pytest.approx(log_loss(labels, probabilities, labels=range(7)), rel=1e-6)


def test_examples_without_a_label_do_not_count():
    logits = np.asarray([[3.0, 0.0], [0.0, 9.0]], np.float32)
    found = outcome(Classification(), logits, np.asarray([0, -1]))
    np.testing.assert_array_equal(found.weights, [1, 0])


def test_what_training_adds():
    logits, targets = text_batch()
    objective = NextToken(z_loss=1e-2, label_smoothing=0.2)
    found, plain = (outcome(objective, logits, targets, train=train) for train in (True, False))
    there, wide = targets >= 0, logits.astype(np.float64)
    nll = np.asarray(plain.losses, np.float64)
    smoothed = 0.8 * nll + 0.2 * -log_softmax(wide, -1).mean(-1) + 1e-2 * logsumexp(wide, -1) ** 2
    np.testing.assert_allclose(np.asarray(found.losses)[there], smoothed[there], rtol=1e-5)
    assert float(found.scalars["nll"]) == pytest.approx(nll[there].mean(), rel=1e-6)
    np.testing.assert_array_equal(plain.losses, outcome(NextToken(), logits, targets).losses)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_smoothing_leaves_a_padded_vocabulary_out(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), dtype)
    padded = jnp.concatenate([logits, jnp.full((2, 3, 3), -1e30, dtype)], axis=-1)
    targets = np.asarray([[0, 1, 2], [3, 4, -1]])
    objective = NextToken(label_smoothing=0.1, z_loss=1e-3)
    found, wanted = (outcome(objective, x, targets, train=True).losses for x in (padded, logits))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_logits_of_any_size_and_of_bfloat16():
    logits = np.asarray([[1e4, -1e4, 0.0], [-3e38, 0.0, 3e38], [80.0, -np.inf, 0.0]], np.float32)
    found = outcome(Classification(), logits, np.asarray([0, 2, 0])).losses
    np.testing.assert_allclose(found, [0.0, 0.0, np.log1p(np.exp(-80.0))], atol=1e-30)
    halves = jnp.asarray(logits[:1]).astype(jnp.bfloat16)
    assert outcome(Classification(), halves, np.asarray([1])).losses.dtype == jnp.float32
    coarse = outcome(Classification(), jnp.full((1, 1000), 3.0, jnp.bfloat16), np.asarray([1])).losses
    np.testing.assert_allclose(coarse, np.log(1000.0), rtol=1e-6)


def test_the_gradient_is_softmax_minus_one_hot():
    logits, targets = text_batch()

    def loss(logits):
        return outcome(NextToken(), logits, targets, train=True).total()[0]

    gradient = jax.jit(jax.grad(loss))(logits)
    expected = np.exp(log_softmax(logits.astype(np.float64), -1)) - np.eye(7)[np.maximum(targets, 0)]
    np.testing.assert_allclose(gradient, expected * (targets >= 0)[..., None], atol=1e-6)


@pytest.mark.parametrize(
    ("plugin", "wrong"),
    [
        (NextToken, {"z_loss": -1e-4}),
        (NextToken, {"label_smoothing": 1.0}),
        (Classification, {"label_smoothing": -0.1}),
        (Classification, {"label_smoothing": float("nan")}),
    ],
)
def test_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plugin(**wrong)
