"""Transforms by name, what they are reported to cost, and artifacts of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from assay import config, registry
from assay.errors import ExportError, PluginError
from assay.plan.plan import make_plan
from assay_export.compare import INFINITE
from assay_export.live import Live
from assay_export.named import transform_of
from assay_export.parity import unchecked
from assay_export.programs import exported
from assay_export.transforms.cast import Cast
from assay_export.transforms.int4 import Int4
from assay_export.transforms.int8 import Int8
from assay_export.transforms.prune import Prune
from assay_export.transforms.report import Effect, transformed

PLUGINS = {"int8": Int8, "int4": Int4, "cast": Cast, "prune": Prune}
EXPERIMENT = """
experiment.model = @model.vit()
model.vit.patch = 4
model.vit.layers = 1
model.vit.width = 16
model.vit.heads = 2
experiment.dataset = @dataset.digits()
experiment.objective = @objective.classification()
experiment.metrics = [@metric.accuracy()]
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-3
experiment.parallelism = @parallelism.data_parallel()
parallelism.data_parallel.data = 1
experiment.steps = 1
experiment.batch_size = 64
experiment.trackers = []
"""


@pytest.fixture(autouse=True)
def plugins() -> Any:
    import contextlib

    with contextlib.ExitStack() as stack:
        for name, plugin in PLUGINS.items():
            stack.enter_context(registry.temporary("transform", name, plugin))
        yield


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", Int8()),
        ("int4(group=64)", Int4(group=64)),
        ("int4( group = 32, skip = ['head', 'mlp/up'] )", Int4(group=32, skip=("head", "mlp/up"))),
        ("prune(pattern='2:4')", Prune(pattern="2:4")),
        ("cast(dtype='float16')", Cast(dtype="float16")),
    ],
)
def test_a_transform_by_name(text: str, expected: Any) -> None:
    assert transform_of(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4(grup=64)", "--transform int4(grup=64): transform.int4 has no setting 'grup'. Did you mean 'group'?"),
        ("int4(group='64')", "--transform int4(group='64'): group expects int, got '64' (str)"),
        ("int4(group=0)", "--transform int4(group=0): group = 0: must be at least 1"),
        ("int8(skip='head')", "--transform int8(skip='head'): skip "),
        ("int4(64)", "--transform int4(64): it is no transform; write NAME or NAME(setting=value, …)"),
        ("int4(group=open('x'))", "--transform int4(group=open('x')): group=open('x') is no value"),
        ("int4(group", "--transform int4(group: '(' was never closed"),
        ("a.b", "--transform a.b: it is no transform"),
    ],
)
def test_what_is_no_transform_is_said(text: str, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        transform_of(text)
    assert str(caught.value).startswith(message)


def test_an_unknown_transform_has_neighbours() -> None:
    with pytest.raises(PluginError, match="Did you mean"):
        transform_of("int9")


def test_what_transforms_cost(tmp_path: Path) -> None:
    plan = make_plan(config.load_text(EXPERIMENT).experiment)
    params, stats = jax.jit(plan.network.init)(jax.random.key(0))
    live = Live(plan, (params, {}, stats))
    source = exported(plan, live.variables, live.examples(8), {})
    chosen = [(text, transform_of(text)) for text in ("prune(sparsity=0.9)", "int8")]
    found, changed, (pruned, both) = transformed(source, live, chosen, 100)
    assert transformed(source, live, [], 100) == (source, live, [])

    size = sum(w.nbytes for w in source.weights.values())
    assert pruned.bytes == (size, size)
    assert both.bytes == (size, sum(w.nbytes for w in found.weights.values()))
    assert both.bytes[1] < 0.5 * size
    assert pruned.outputs.norm > 0.01
    assert abs(both.outputs.norm - pruned.outputs.norm) < 0.1 * pruned.outputs.norm  # int8 adds little

    # The metrics are those of the transformed network over the first examples of the evaluation split, by hand.
    batch = next(live.batches(100, 100))
    for effect, call in ((pruned, transform_of("prune(sparsity=0.9)").apply(source)), (both, found)):
        scores = call.program("forward").function(dict(call.weights), {"image": batch["image"]})["output"]
        accuracy = float(np.mean(np.argmax(scores, axis=-1) == batch["label"]))
        assert effect.examples == 100
        assert effect.metrics["accuracy"][1] == pytest.approx(accuracy)
        assert effect.metrics["loss"][0] != effect.metrics["loss"][1]
    assert np.allclose(changed.forward({"image": batch["image"]}), scores, atol=1e-5)
    assert np.array_equal(live.forward({"image": batch["image"]}).shape, scores.shape)
    lines = both.lines()
    assert lines[0].startswith(f"int8: {size / 2**20:.2f} MiB -> ")
    assert lines[2].startswith("int8: accuracy ")
    json.dumps(dataclasses.asdict(both))


def test_an_effect_that_is_no_number_can_be_written() -> None:
    effect = Effect("int8", (2, 1), None, INFINITE, {"auc": (float("nan"), 0.5)}, 3)
    found = json.loads(json.dumps(effect.json(), allow_nan=False))
    assert (found["outputs"]["norm"], found["metrics"], found["bytes"]) == (None, {"auc": [None, 0.5]}, [2, 1])


def test_a_format_whose_loader_cannot_run_here_is_not_compared() -> None:
    assert unchecked(["numpy", "jax>=0.4"], 1e-5) is None
    found = unchecked(["numpy", "not-there-at-all>=1", "jax>=999"], 1e-5)
    assert found is not None
    assert found.unchecked == "its loader needs not-there-at-all>=1, jax>=999, which is not installed here"
    assert found.problems == []
