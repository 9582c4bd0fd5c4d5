"""Metrics against scikit-learn and numpy; any division of a split into batches gives the value of the whole."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.kinds import Metric
from assay.outcome import Outcome
from assay_plugins.metrics.accuracy import Accuracy, TopK
from assay_plugins.metrics.calibration import CalibrationError
from assay_plugins.metrics.likelihood import BitsPerByte, Perplexity

CLASSES = 6
BYTES = np.asarray([0, 1, 1, 2, 3, 1], np.int32)


class Letters:
    """As much of an encoder as bits per byte reads."""

    def token_bytes(self):
        return BYTES


SPEC = DataSpec({}, vocab_size=CLASSES, encoder=Letters())
ALL = [Perplexity(), BitsPerByte(), Accuracy(), TopK(k=3), CalibrationError(bins=10)]


def items(count, seed=0, spread=3.0):
    """(logits, targets) of so many items; few ties, all classes."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, CLASSES)) * spread).astype(np.float32), generator.integers(0, CLASSES, count)


def outcome(logits, targets, weights=None, losses=None):
    weights = np.ones(targets.shape) if weights is None else weights
    losses = np.zeros(targets.shape) if losses is None else losses
    arrays = (losses, weights, logits, targets.astype(np.int32))
    return Outcome(*(jnp.asarray(x, x.dtype if x.dtype == np.int32 else np.float32) for x in arrays))


@functools.cache
def jitted(metric):
    return jax.jit(lambda out: metric.update(out, SPEC))


def state(metric, out):
    """One batch's state as the core holds it."""
    found = jitted(metric)(out)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def value(metric, *states):
    """The metric over the batches."""
    whole = states[0]
    for other in states[1:]:
        whole = metric.merge(whole, other)
    (number,) = metric.compute(whole).values()
    return number


def calibration_error(probabilities, targets, bins, weights=None):
    """Guo et al. 2017, by loop."""
    weights = np.ones(len(targets)) if weights is None else weights
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == targets
    total = 0.0
    for m in range(bins):
        member = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if weights[member].sum():
            gap = np.average(right[member], weights=weights[member]) - np.average(
                confidence[member], weights=weights[member]
            )
            total += weights[member].sum() / weights.sum() * abs(gap)
    return total


def expected(metric, logits, targets, weights=None):
    """The value in float64, by scikit-learn where it has the metric."""
    probabilities = softmax(logits.astype(np.float64), -1)
    labels = {"labels": range(CLASSES), "sample_weight": weights}
    if isinstance(metric, Perplexity):
        return math.exp(log_loss(targets, probabilities, **labels))
    if isinstance(metric, BitsPerByte):
        sizes = BYTES[targets] * (1 if weights is None else weights)
        return log_loss(targets, probabilities, normalize=False, **labels) / math.log(2) / sizes.sum()
    if isinstance(metric, Accuracy):
        return accuracy_score(targets, logits.argmax(-1), sample_weight=weights)
    if isinstance(metric, TopK):
        return top_k_accuracy_score(targets, logits, k=metric.k, **labels)
    return calibration_error(probabilities, targets, metric.bins, weights)


def named(metrics):
    return pytest.mark.parametrize("metric", metrics, ids=lambda m: type(m).__name__)


@named(ALL)
def test_the_published_value(metric):
    assert isinstance(metric, Metric)
    logits, targets = items(500)
    assert value(metric, state(metric, outcome(logits, targets))) == pytest.approx(
        expected(metric, logits, targets), rel=1e-5
    )
    weights = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 2.0], 500)
    found = value(metric, state(metric, outcome(logits, targets, weights)))
    assert found == pytest.approx(expected(metric, logits, targets, weights), rel=1e-5)


@named(ALL)
def test_items_of_weight_0_add_nothing_whatever_they_hold(metric):
    logits, targets = items(12)
    logits = np.concatenate(
        [logits, np.full((3, CLASSES), np.nan, np.float32), np.full((1, CLASSES), np.inf, np.float32)]
    )
    targets = np.concatenate([targets, [-1, 2, 0, -1]])
    weights = (np.arange(16) < 12).astype(np.float32)
    found = state(metric, outcome(logits, targets, weights, losses=np.full(16, np.nan)))
    for name, total in state(metric, outcome(logits[:12], targets[:12])).items():
        np.testing.assert_allclose(found[name], total, rtol=1e-6, err_msg=name)


@named(ALL)
def test_tokens_count_like_examples(metric):
    logits, targets = items(24)
    rows = outcome(logits.reshape(4, 6, CLASSES), targets.reshape(4, 6))
    assert value(metric, state(metric, rows)) == pytest.approx(
        value(metric, state(metric, outcome(logits, targets))), rel=1e-6
    )


@named(ALL)
@settings(max_examples=15)
@given(
    cuts=st.sets(st.integers(1, 3), max_size=3),
    seed=st.integers(0, 1000),
    empty=st.sets(st.integers(0, 15), max_size=15),
    backwards=st.booleans(),
)
def test_any_division_into_batches_gives_the_whole(metric, cuts, seed, empty, backwards):
    logits, targets = items(16, seed)
    weights = np.asarray([i not in empty for i in range(16)], np.float64)
    whole = value(metric, state(metric, outcome(logits, targets, weights)))
    edges = [0, *(4 * c for c in sorted(cuts)), 16]  # multiples of 4, for few compilations
    states = [state(metric, outcome(logits[a:b], targets[a:b], weights[a:b])) for a, b in itertools.pairwise(edges)]
    assert value(metric, *(states[::-1] if backwards else states)) == pytest.approx(whole, rel=1e-5, nan_ok=True)


@named(ALL)
def test_merging_is_associative_and_commutative(metric):
    a, b, c = (state(metric, outcome(*items(8, seed))) for seed in range(3))
    for name in a:
        one = metric.merge(metric.merge(a, b), c)[name]
        np.testing.assert_allclose(one, metric.merge(c, metric.merge(b, a))[name], rtol=1e-12)
        assert one.dtype == np.float64


@named(ALL)
def test_batches_over_devices_give_the_whole(metric):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = outcome(*items(32))
    parted = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("data")))
    for name, total in state(metric, whole).items():
        np.testing.assert_allclose(state(metric, parted)[name], total, rtol=1e-6)


@named(ALL)
def test_an_empty_split_has_no_value(metric):
    logits, targets = items(4)
    found = state(metric, outcome(logits, targets, np.zeros(4)))
    assert math.isnan(value(metric, found))


@named(ALL)
def test_an_objective_without_scores(metric):
    bare = dataclasses.replace(outcome(*items(4)), logits=None)
    with pytest.raises(ConfigError, match="needs logits and targets"):
        metric.update(bare, SPEC)


@named([Perplexity(), BitsPerByte()])
def test_likelihood_does_not_depend_on_the_losses(metric):
    logits, targets = items(20)
    plain, trained = (state(metric, outcome(logits, targets, losses=np.full(20, x))) for x in (0.0, 7.0))
    assert plain == trained


def test_bits_per_byte_of_known_text():
    logits = np.log(np.asarray([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.05, 0.25, 0.1, 0.1, 0.25, 0.25]], np.float32))
    found = state(BitsPerByte(), outcome(logits, np.asarray([0, 4])))
    assert value(BitsPerByte(), found) == pytest.approx((1 + 2) / 3)  # 1 bit for a separator, 2 for three bytes


def test_bits_per_byte_without_a_tokenizer():
    with pytest.raises(ConfigError, match="dataset of text with a tokenizer"):
        BitsPerByte().update(outcome(*items(4)), DataSpec({}, num_classes=CLASSES))


def test_a_perplexity_beyond_floating_point():
    logits = np.asarray([[0.0, 2000.0, 0, 0, 0, 0]], np.float32)
    assert value(Perplexity(), state(Perplexity(), outcome(logits, np.asarray([0])))) == math.inf


def test_of_equal_scores_the_lower_class_comes_first():
    logits = np.zeros((1, CLASSES), np.float32)
    for metric, best in ((Accuracy(), 1), (TopK(k=3), 3)):
        right = [value(metric, state(metric, outcome(logits, np.asarray([label])))) for label in range(CLASSES)]
        assert right == [1.0] * best + [0.0] * (CLASSES - best)


@named([Accuracy(), TopK(k=3)])
def test_scores_that_are_not_numbers_are_never_right(metric):
    found = state(metric, outcome(np.full((2, CLASSES), np.nan, np.float32), np.asarray([0, 1])))
    assert (found["right"], found["weight"]) == (0, 2)


def test_scores_that_are_not_numbers_have_no_calibration():
    logits, targets = items(4)
    logits[2, 1] = np.nan
    assert math.isnan(value(CalibrationError(), state(CalibrationError(), outcome(logits, targets))))


def test_calibration_at_the_edges_of_bins():
    half = np.log(np.asarray([[0.5, 0.5, 1e-30], [0.25, 0.75, 1e-30], [1.0, 1e-30, 1e-30]], np.float32))
    found = state(CalibrationError(bins=4), outcome(half, np.asarray([0, 0, 0])))
    np.testing.assert_allclose(found["weight"], [0, 1, 1, 1])
    np.testing.assert_allclose(found["confidence"], [0, 0.5, 0.75, 1], rtol=1e-6)
    np.testing.assert_allclose(found["right"], [0, 1, 0, 1])


def test_names_of_values():
    names = [name for metric in ALL for name in metric.compute(state(metric, outcome(*items(4))))]
    assert names == ["perplexity", "bits_per_byte", "accuracy", "top_3_accuracy", "calibration_error"]


def test_large_tokens_of_text_are_not_lost():
    count = 100_000
    logits, targets = items(count, spread=1.0)
    nll = -log_softmax(logits.astype(np.float64), -1)[np.arange(count), targets]
    found = state(Perplexity(), outcome(logits, targets))
    assert found["weight"] == count
    assert float(found["nats"]) == pytest.approx(nll.sum(), rel=1e-6)


@pytest.mark.parametrize(("plugin", "wrong"), [(TopK, {"k": 0}), (CalibrationError, {"bins": 0})])
def test_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plugin(**wrong)


def test_more_guesses_than_classes():
    with pytest.raises(ConfigError, match=r"metric\.top_k\.k = 6: there are 6 classes"):
        TopK(k=6).update(outcome(*items(4)), SPEC)
