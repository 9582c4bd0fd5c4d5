"""The conformance kit of metrics: the shipped ones pass, equal to scikit-learn's, and each check catches the metric that it is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


TEXT = DataSpec({"inputs": ArraySpec((4,), "int32")}, vocab_size=256, encoder=ByteEncoder())


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
    "calibration_error": (CalibrationError(), {}),
    "perplexity": (Perplexity(), {"reference": perplexity}),
    "bits_per_byte": (BitsPerByte(), {"spec": lambda self: TEXT}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_metrics_pass(name, kit_around, failures) -> None:
    plugin, overrides = SHIPPED[name]
    assert failures(kit_around(MetricKit, plugin, **overrides)) == {}


@dataclasses.dataclass(frozen=True)
class MeanLoss:
    """The mean loss, with a place for one mistake."""

    flaw: str = ""

    def update(self, outcome: Outcome, spec: DataSpec):
        flaw, weights = self.flaw, outcome.weights
        losses = outcome.losses if flaw == "counts padding" else jnp.where(weights > 0, outcome.losses, 0.0)
        total, weight = jnp.sum(losses * weights), jnp.sum(weights)
        if flaw == "mean of means":
            total, weight = total / jnp.maximum(weight, 1), jnp.float32(1)
        if flaw == "nested":
            return {"sums": {"total": total, "weight": weight}}
        if flaw == "by item":
            return {"total": losses * weights, "weight": weights}
        if flaw == "jit" and isinstance(total, jax.core.Tracer):
            total = total * 1.01
        if flaw == "mesh" and isinstance(total, jax.core.Tracer) and len(jax.typeof(losses).sharding.mesh.axis_names):
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
    "jit": "test_compiled_equals_eager",
    "no number": "test_values_are_numbers_by_name",
    "names": "test_values_are_numbers_by_name",
    "changes the state": "test_values_are_numbers_by_name",
    "slightly off": "test_it_equals_its_reference",
}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw, kit_around, failures) -> None:
    assert MUTATIONS[flaw] in failures(kit_around(MetricKit, MeanLoss(flaw), reference=mean_loss))


def test_a_metric_of_one_device_s_rows_alone_is_caught(kit_around, failures) -> None:
    class FirstRows(MeanLoss):
        def update(self, outcome, spec):
            rows = 6 if isinstance(outcome.losses, jax.Array) and len(outcome.losses.sharding.device_set) > 1 else None
            return super().update(jax.tree.map(lambda x: x[:rows], outcome), spec)

    kit = kit_around(MetricKit, FirstRows(), reference=mean_loss)
    kit._update = lambda outcome: kit.plugin().update(outcome, kit.spec())
    original = jax.jit
    with pytest.MonkeyPatch.context() as patch:  # without jit the metric sees the devices, as a shard_map's body would
        patch.setattr(jax, "jit", lambda f, **_: f)
        assert "test_a_mesh_of_devices_changes_nothing" in failures(kit)
    assert jax.jit is original


def test_the_sound_one_passes(kit_around, failures) -> None:
    assert failures(kit_around(MetricKit, MeanLoss(), reference=mean_loss)) == {}
