"""model.pretrained: parameters of an import or of a run, and one error for all that does not fit."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from assay import config, registry
from assay.checkpoint.checkpoints import dotted
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError, DataError, RunError
from assay.imported import Imported, write
from assay.network import make_network
from assay.plan.plan import make_plan
from assay.train import begin
from assay.train.launch import restored, start
from assay_plugins.models.mlp import MLP
from assay_plugins.models.pretrained import Pretrained
from assay_plugins.models.transformer import Transformer

ROW = ArraySpec((12,), "int32")
TEXT = DataSpec({"inputs": ROW, "targets": ROW}, vocab_size=16)
DECODER = Transformer(layers=1, width=16, heads=2)
IMAGES = DataSpec({"image": ArraySpec((8, 8, 1), "float32")}, num_classes=10)
EXPERIMENT = """
experiment.model = {model}
model.mlp.hidden = [16]
experiment.dataset = @dataset.digits()
experiment.objective = @objective.classification()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-2
experiment.parallelism = @parallelism.fsdp()
parallelism.fsdp.fsdp = 8
experiment.trackers = []
experiment.steps = 4
experiment.batch_size = 32
"""
PLAIN = EXPERIMENT.format(model="@model.mlp()")
FROM = EXPERIMENT.format(model="@model.pretrained()\nmodel.pretrained.model = @model.mlp()")


@pytest.fixture(autouse=True)
def plugins():
    with registry.temporary("model", "pretrained", Pretrained):
        yield


def drawn(model: Any, spec: DataSpec) -> dict[str, np.ndarray]:
    """Parameters of `model`, each element another number."""
    shapes = {path.replace(".", "/"): leaf.shape for path, leaf in dotted(make_network(model, spec).params).items()}
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def stored(folder: Path, arrays: dict[str, np.ndarray], vocab: int | None = None) -> Path:
    write(Imported("experiment.model = @model.mlp()", arrays, vocab), folder, origin={})
    return folder


def test_an_import_comes_back_bit_for_bit(tmp_path: Path) -> None:
    arrays = drawn(DECODER, TEXT)
    model = Pretrained(model=DECODER, path=str(stored(tmp_path / "decoder", arrays, 16)))
    found = model.initial_values(TEXT)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[path], value) for path, value in arrays.items())
    assert all(isinstance(value, np.memmap) for value in found.values())


def test_training_begins_with_the_import_on_eight_devices(tmp_path: Path) -> None:
    arrays = drawn(MLP(hidden=(16,)), IMAGES)
    path = stored(tmp_path / "mlp", arrays)
    plan = make_plan(config.load_text(f"{FROM}model.pretrained.path = {str(path)!r}\n").experiment)
    state = begin.drawn(plan)
    for name, leaf in dotted(state.params).items():
        np.testing.assert_array_equal(leaf, arrays[name.replace(".", "/")])
    assert state.params["layers"]["0"]["kernel"].sharding.spec != jax.sharding.PartitionSpec()


@pytest.mark.slow
@pytest.mark.parametrize("average", [False, True])
def test_a_run_goes_on_from_another(tmp_path: Path, average: bool) -> None:
    text = f"{PLAIN}experiment.ema_decay = 0.9\n" if average else PLAIN
    first = start(config.load_text(text, "first.gin"), tmp_path / "runs")
    _, state, _ = restored(first.run)
    later = config.load_text(f"{FROM}model.pretrained.path = {str(first.run.path)!r}\n", "later.gin")
    begun = begin.drawn(make_plan(later.experiment))
    jax.tree.map(np.testing.assert_array_equal, begun.params, state.evaluated)
    if average:
        assert any(
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state.params, state.ema)), strict=True)
        )


def test_fresh_parts_are_drawn(tmp_path: Path) -> None:
    arrays = drawn(MLP(hidden=(16,)), dataclasses.replace(IMAGES, num_classes=1000))
    path = str(stored(tmp_path / "mlp", arrays))
    with pytest.raises(ConfigError) as caught:
        Pretrained(model=MLP(hidden=(16,)), path=path).initial_values(IMAGES)
    assert str(caught.value).splitlines()[1:] == [
        "  head/bias: stored with shape (1000,), the model's is (10,)",
        "  head/kernel: stored with shape (16, 1000), the model's is (16, 10)",
        "For other classes than the stored model's, set model.pretrained.fresh = ('head',)",
    ]
    found = Pretrained(model=MLP(hidden=(16,)), path=path, fresh=("head",)).initial_values(IMAGES)
    assert found.keys() == {"layers/0/kernel", "layers/0/bias"}
    with pytest.raises(ConfigError, match=r"fresh: the model has no part 'heat'; it has head, layers"):
        Pretrained(model=MLP(hidden=(16,)), path=path, fresh=("heat",)).initial_values(IMAGES)


def test_every_misfit_is_in_one_error(tmp_path: Path) -> None:
    arrays = drawn(DECODER, TEXT)
    del arrays["norm/scale"]
    arrays["blocks/0/attention/query/bias"] = np.zeros((2, 8), np.float32)
    arrays["blocks/0/mlp/up/kernel"] = np.zeros((16, 63), np.float32)
    path = str(stored(tmp_path / "decoder", arrays, 16))
    with pytest.raises(ConfigError) as caught:
        Pretrained(model=DECODER, path=path).initial_values(TEXT)
    assert str(caught.value).splitlines() == [
        f"the parameters in {path} do not fit the model:",
        "  norm/scale: not stored",
        "  blocks/0/attention/query/bias: stored, and not the model's",
        "  blocks/0/mlp/up/kernel: stored with shape (16, 63), the model's is (16, 64)",
    ]


def test_another_vocabulary_names_both_and_what_to_do(tmp_path: Path) -> None:
    large = dataclasses.replace(TEXT, vocab_size=24)
    arrays = drawn(DECODER, large)
    path = str(stored(tmp_path / "decoder", arrays, 24))
    message = "The stored model knows 24 token ids, the dataset 16. Give the dataset the model's own tokenizer"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Pretrained(model=DECODER, path=path).initial_values(TEXT)
    padded = dataclasses.replace(DECODER, vocab_size=24)
    found = Pretrained(model=padded, path=path).initial_values(TEXT)
    assert found["tokens/embedding"].shape == (24, 16)


def test_paths_with_nothing_in_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither an imported model \(parameters\.safetensors\) nor a run"):
        Pretrained(model=DECODER, path=str(tmp_path)).initial_values(TEXT)


def test_a_damaged_import_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "decoder", drawn(DECODER, TEXT), 16)
    file = path / "parameters.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"decoder cannot be read: .*; import it again"):
        Pretrained(model=DECODER, path=str(path)).initial_values(TEXT)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    from assay import runs

    loaded = config.load_text(PLAIN, "first.gin")
    run = runs.create(tmp_path, "first", parent=None, steps=4, seed=0, config={}, config_digest="", data="", plugins={})
    run.write("config.gin", loaded.flat)
    with pytest.raises(RunError, match=r"has no checkpoint yet"):
        Pretrained(model=MLP(hidden=(16,)), path=str(run.path)).initial_values(IMAGES)
