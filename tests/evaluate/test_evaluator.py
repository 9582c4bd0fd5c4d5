"""Evaluation of a whole split on eight devices is the value that numpy computes over its rows, whatever is left over in the last batch."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from assay.data.spec import ArraySpec, DataSpec
from assay.evaluate.evaluator import Evaluator
from assay.experiment import Experiment
from assay.plan.plan import make_plan
from assay.train.state import initial_state
from assay_plugins.metrics.accuracy import Accuracy, TopK
from assay_plugins.metrics.calibration import CalibrationError
from assay_plugins.metrics.likelihood import Perplexity
from assay_plugins.models.mlp import MLP
from assay_plugins.objectives.classification import Classification
from assay_plugins.optimizers.sgd import SGD
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.parallelism.fsdp import FSDP
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
from assay_plugins.parallelism.tensor import Tensor

CLASSES, BINS, TOP, MOST = 8, 5, 3, 70
MESHES = {"data": DataParallel(), "fsdp": FSDP(), "tensor": Tensor(), "all three": FSDPTensor(data=2, fsdp=2, tensor=2)}
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal(size=(MOST, 4, 4, 1)).astype(np.float32)
LABELS = GENERATOR.integers(0, CLASSES, MOST).astype(np.int32)


class Rows:
    """Labelled images; the validation split is as long as `count` says at the time."""

    count = MOST

    def spec(self):
        return DataSpec(
            {"image": ArraySpec((4, 4, 1), "float32"), "label": ArraySpec((), "int32")}, num_classes=CLASSES
        )

    def source(self, split):
        return [{"image": IMAGES[i], "label": LABELS[i]} for i in range(self.count)]

    def fingerprint(self):
        return str(self.count)


@functools.cache
def evaluator(mesh, batch_size):
    """The evaluator of a small network on all eight devices, its dataset, its state and the network as numpy sees it."""
    dataset = Rows()
    experiment = Experiment(
        model=MLP(hidden=(16,)),
        dataset=dataset,
        objective=Classification(),
        optimizer=SGD(learning_rate=0.1),
        parallelism=MESHES[mesh],
        metrics=(Accuracy(), TopK(k=TOP), CalibrationError(bins=BINS), Perplexity()),
        trackers=(),
        steps=1,
        batch_size=8,
        evaluate_batch_size=batch_size,
    )
    plan = make_plan(experiment, devices=jax.devices())
    draw = functools.partial(initial_state, experiment, plan.network, plan.optimizer)
    state = jax.jit(draw, out_shardings=plan.shardings)()
    return SimpleNamespace(dataset=dataset, evaluate=Evaluator(plan), state=state, params=jax.device_get(state.params))


def by_numpy(params, count):
    """Every value over the first `count` rows, in float64, from the definitions."""
    x = IMAGES[:count].reshape(count, -1).astype(np.float64)
    labels = LABELS[:count]
    first, head = params["layers"]["0"], params["head"]
    hidden = np.maximum(x @ first["kernel"].astype(np.float64) + first["bias"], 0)
    scores = log_softmax(hidden @ head["kernel"].astype(np.float64) + head["bias"], axis=-1)
    loss = -scores[np.arange(count), labels].mean()
    order = np.argsort(-scores, axis=-1, kind="stable")
    confidence, right = np.exp(scores.max(axis=-1)), order[:, 0] == labels
    gaps = 0.0
    for low in range(BINS):
        member = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
        gaps += abs(right[member].sum() - confidence[member].sum())
    return {
        "validation/loss": loss,
        "validation/accuracy": right.mean(),
        f"validation/top_{TOP}_accuracy": (order[:, :TOP] == labels[:, None]).any(axis=-1).mean(),
        "validation/calibration_error": gaps / count,
        "validation/perplexity": np.exp(loss),
    }


@pytest.mark.parametrize("mesh", MESHES)
@settings(max_examples=25)
@given(count=st.integers(1, MOST), batch_size=st.sampled_from([1, 8, 13, 32]))
def test_a_ragged_split_on_eight_devices_has_the_values_of_numpy(mesh, count, batch_size):
    made = evaluator(mesh, batch_size)
    made.dataset.count = count
    size, most = made.evaluate.batch_size(count), -(-batch_size // 8) * 8
    assert size <= most
    assert -(-count // size) <= -(-count // batch_size)
    values, expected = made.evaluate("validation", made.state), by_numpy(made.params, count)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=1e-7, err_msg=name)
