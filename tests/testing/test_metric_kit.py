"""The conformance kit of metrics: the shipped ones pass, equal to scikit-learn's, and each check catches the metric that it is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from assay.data.spec import ArraySpec, DataSpec
from assay.outcome import Outcome
from assay.testing import MetricKit
from assay.testing.examples import CLASSES
from assay_plugins.bayes.outcome import PosteriorOutcome
from assay_plugins.metrics.accuracy import Accuracy, ExactMatch, TopK
from assay_plugins.metrics.calibration import CalibrationError
from assay_plugins.metrics.likelihood import BitsPerByte, Perplexity
from assay_plugins.metrics.posterior import Posterior
from assay_plugins.tokenizers.byte import ByteEncoder

BYTES = np.array([1, 2, 3, 4, 0, 1, 2, 5], np.int32)  # of each target; 0 is a separator's


class Lengths(ByteEncoder):
    def token_bytes(self) -> np.ndarray:
        return BYTES


def accuracy(self, o: Outcome) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(o.targets, np.argmax(o.logits, -1), sample_weight=np.asarray(o.weights)))}


def top_2(self, o: Outcome) -> dict[str, float]:
    return {
        "top_2_accuracy": float(
            top_k_accuracy_score(
                o.targets, np.asarray(o.logits), k=2, labels=range(CLASSES), sample_weight=np.asarray(o.weights)
            )
        )
    }


def perplexity(self, o: Outcome) -> dict[str, float]:
    p = np.asarray(jax.nn.softmax(o.logits.astype(jnp.float32)), np.float64)
    p /= p.sum(-1, keepdims=True)
    return {
        "perplexity": float(np.exp(log_loss(o.targets, p, labels=range(CLASSES), sample_weight=np.asarray(o.weights))))
    }


TEXT = DataSpec({"inputs": ArraySpec((4,), "int32")}, vocab_size=CLASSES, encoder=Lengths())


def bits_per_byte(self, o: Outcome) -> dict[str, float]:
    weights = np.asarray(o.weights, np.float64)
    nats = np.log(perplexity(self, o)["perplexity"]) * weights.sum()
    return {"bits_per_byte": float(nats / np.log(2) / (weights * BYTES[np.asarray(o.targets)]).sum())}


def calibration_error(self, o: Outcome) -> dict[str, float]:
    counts = np.asarray(o.weights) > 0
    p = np.asarray(jax.nn.softmax(o.logits), np.float64)[counts]
    confidence, right = p.max(-1), p.argmax(-1) == np.asarray(o.targets)[counts]
    gaps = [
        abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
        for low in range(15)
        if (inside := (confidence > low / 15) & (confidence <= (low + 1) / 15)).any()
    ]
    return {"calibration_error": float(sum(gaps))}


def sequences(self, size: int, seed: int = 0) -> Outcome:
    """Three items an example, as of tokens, often right, with weights from 0 to 2."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, CLASSES, (size, 3))
    logits = draw.normal(size=(size, 3, CLASSES)) + 4 * np.eye(CLASSES)[targets]
    weights = draw.choice([0.0, 0.5, 1.0, 2.0], (size, 3))
    arrays = (jnp.asarray(x, jnp.float32) for x in (draw.random((size, 3)), weights, logits))
    return Outcome(*arrays, jnp.asarray(targets, jnp.int32))


def items(reference):
    """A reference for sequences, from one for single items."""

    def of_sequences(self, o: Outcome) -> dict[str, float]:
        flat = (x.reshape(-1, *x.shape[2:]) for x in (o.losses, o.weights, o.logits, o.targets))
        return reference(self, Outcome(*flat))

    return of_sequences


def exact_match(self, o: Outcome) -> dict[str, float]:
    right, counts = np.argmax(o.logits, -1) == np.asarray(o.targets), np.asarray(o.weights) > 0
    return {"exact_match": float((right | ~counts).all(-1)[counts.any(-1)].mean())}


def with_draws(self, size: int, seed: int = 0) -> PosteriorOutcome:
    draws = {"mu": jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)), jnp.float32)}
    plain = MetricKit.outcome(self, size, seed)
    return PosteriorOutcome(plain.losses, plain.weights, draws=draws)


def moments(self, o: PosteriorOutcome) -> dict[str, float]:
    x = np.asarray(o.draws["mu"], np.float64)
    return {
        f"mu[{i}]/{k}": float(v) for i in range(2) for k, v in (("mean", x[:, i].mean()), ("sd", x[:, i].std(ddof=1)))
    }


SHIPPED = {
    "posterior": (Posterior(), {"outcome": with_draws, "reference": moments}),
    "accuracy": (Accuracy(), {"reference": accuracy}),
    "top_k": (TopK(k=2), {"reference": top_2}),
    "exact_match": (ExactMatch(), {"reference": lambda self, o: {"exact_match": accuracy(self, o)["accuracy"]}}),
    "calibration_error": (CalibrationError(), {"reference": calibration_error}),
    "perplexity": (Perplexity(), {"reference": perplexity}),
    "bits_per_byte": (BitsPerByte(), {"spec": lambda self: TEXT, "reference": bits_per_byte}),
    "accuracy of sequences": (Accuracy(), {"outcome": sequences, "reference": items(accuracy)}),
    "top_k of sequences": (TopK(k=2), {"outcome": sequences, "reference": items(top_2)}),
    "exact_match of sequences": (ExactMatch(), {"outcome": sequences, "reference": exact_match}),
    "perplexity of sequences": (Perplexity(), {"outcome": sequences, "reference": items(perplexity)}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_metrics_pass(name, kit_around, failures) -> None:
    plugin, overrides = SHIPPED[name]
    assert failures(kit_around(MetricKit, plugin, **overrides)) == {}


@custom_partitioning
def sum_of_own_rows(x):
    """A sum with a rule for several devices that forgets to add up what each of them found."""
    return jnp.sum(x)


def without_psum(mesh, arguments, result):
    return mesh, jnp.sum, NamedSharding(mesh, PartitionSpec()), (arguments[0].sharding,)


sum_of_own_rows.def_partition(partition=without_psum, sharding_rule="i -> ")


@dataclasses.dataclass(frozen=True)
class MeanLoss:
    """The mean loss, with a place for one mistake."""

    flaw: str = ""

    def update(self, outcome: Outcome, spec: DataSpec):
        flaw, weights = self.flaw, outcome.weights
        losses = outcome.losses if flaw == "counts padding" else jnp.where(weights > 0, outcome.losses, 0.0)
        total, weight = jnp.sum(losses * weights), jnp.sum(weights)
        if flaw == "own rows":
            total = sum_of_own_rows(losses * weights)
        if flaw == "scores of padding":
            total = total + 0 * jnp.sum(outcome.logits * weights[:, None])
        if flaw == "mean of means":
            total, weight = total / jnp.maximum(weight, 1), jnp.float32(1)
        if flaw == "nested":
            return {"sums": {"total": total, "weight": weight}}
        if flaw == "by item":
            return {"total": losses * weights, "weight": weights}
        if flaw == "jit" and isinstance(total, jax.core.Tracer):
            total = total * 1.01
        return {"total": total, "weight": weight}

    def merge(self, a, b):
        if self.flaw == "average":
            return {k: (a[k] + b[k]) / 2 for k in a}
        if self.flaw == "last":
            return b
        return {k: a[k] + b[k] for k in a}

    def compute(self, state):
        if self.flaw == "changes the state":
            state["total"] = state["total"] * 2
        mean = state["total"] / np.maximum(state["weight"], 1e-9)
        if self.flaw == "no number":
            return {"mean": mean}
        if self.flaw == "names":
            return {f"mean_of_{int(state['weight'])}": float(mean)}
        return {"mean": float(mean) * (1.001 if self.flaw == "slightly off" else 1.0)}


def mean_loss(self, o: Outcome) -> dict[str, float]:
    return {"mean": float(np.average(np.asarray(o.losses, np.float64), weights=np.asarray(o.weights)))}


MUTATIONS = {
    "nested": "test_a_state_is_arrays_by_name",
    "by item": "test_a_state_is_arrays_by_name",
    "mean of means": "test_any_division_gives_the_same_value",
    "average": "test_merging_is_associative_and_commutative",
    "last": "test_merging_is_associative_and_commutative",
    "counts padding": "test_examples_that_do_not_count_add_nothing",
    "scores of padding": "test_examples_that_do_not_count_add_nothing",
    "jit": "test_compiled_equals_eager",
    "own rows": "test_a_mesh_of_devices_changes_nothing",
    "no number": "test_values_are_numbers_by_name",
    "names": "test_values_are_numbers_by_name",
    "changes the state": "test_values_are_numbers_by_name",
    "slightly off": "test_it_equals_its_reference",
}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw, kit_around, failures) -> None:
    assert MUTATIONS[flaw] in failures(kit_around(MetricKit, MeanLoss(flaw), reference=mean_loss))


def test_the_sound_one_passes(kit_around, failures) -> None:
    assert failures(kit_around(MetricKit, MeanLoss(), reference=mean_loss)) == {}
