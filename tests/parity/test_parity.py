"""Imported models give the logits of the transformers library, and each setting and each tensor matters for that."""

import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay import config, registry
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import DataError
from assay.imported import Imported
from assay.network import make_network
from assay_plugins.importers.hf import HF
from assay_plugins.models.bert import BERT

DECODERS = [
    "llama",
    "llama_biases",
    "llama3",
    "llama_linear",
    "llama_bf16",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt2_other",
    "gpt2_headless",
]
NAMES = [*DECODERS, "vit", "vit_other", "bert", "bert_classes", "bert_pretraining"]
EXPERIMENT = """
experiment.dataset = @dataset.digits()
experiment.objective = @objective.next_token()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-3
experiment.parallelism = @parallelism.data_parallel()
experiment.steps = 1
experiment.batch_size = 1
"""
TOLERANCE = 1e-5
OFF = 1e-3  # what an error must move, to count as seen: a hundred times the tolerance
OURS = {"input_ids": "inputs", "attention_mask": "segment_ids", "token_type_ids": "token_types"}


@pytest.fixture(scope="module")
def cases() -> Path:
    """The folder that make_cases.py wrote."""
    value = os.environ.get("ASSAY_PARITY_CASES")
    if not value:
        pytest.skip("needs models that the transformers library made: run `make parity`")
    return Path(value)


@pytest.fixture(autouse=True, scope="module")
def plugins() -> Iterator[None]:
    with registry.temporary("model", "bert", BERT):
        yield


@functools.cache
def case(path: Path) -> tuple[Imported, Any, dict[str, jax.Array], np.ndarray, np.ndarray]:
    """(what was imported, logits(parameters), our batch, expected logits, where they count)."""
    found = HF().read(path)
    arrays = dict(np.load(path / "expected.npz"))
    expected = arrays.pop("logits")
    batch = {OURS[name]: jnp.asarray(value, jnp.int32) for name, value in arrays.items() if name in OURS}
    if "pixel_values" in arrays:
        batch["image"] = jnp.asarray(arrays["pixel_values"].transpose(0, 2, 3, 1))
    elements = {name: ArraySpec(value.shape[1:], str(value.dtype)) for name, value in batch.items()}
    spec = DataSpec(elements, vocab_size=found.vocab_size, num_classes=expected.shape[-1])
    network = make_network(config.load_text(f"{found.model}\n{EXPERIMENT}").experiment.model, spec)

    @jax.jit
    def logits(parameters: dict[str, jax.Array]) -> jax.Array:
        return network.merge(nested(parameters), {})(batch, train=False, rngs=None)

    counts = np.ones(expected.shape[:-1], bool)
    if expected.ndim == 3 and "attention_mask" in arrays:
        counts = arrays["attention_mask"] == 1
    return found, logits, batch, expected, counts


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = value
    return tree


def difference(path: Path, **changed: np.ndarray) -> float:
    """Largest difference of our logits, with parameters `changed`, from the library's."""
    found, logits, _, expected, counts = case(path)
    ours = np.asarray(logits({**found.parameters, **changed}))
    return float(np.abs(ours - expected)[counts].max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(cases: Path, name: str) -> None:
    *_, expected, counts = case(cases / name)
    assert 0.3 < np.std(expected[counts]) < 2, "the logits should be of the order of 1"
    assert difference(cases / name) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_matters(cases: Path, name: str) -> None:
    found, *_ = case(cases / name)
    for path, value in found.parameters.items():
        # A bias of the keys adds the same to all scores of a query, unless the angles turn it.
        if path.endswith("key/bias") and "rope" not in found.model:
            continue
        changed = value[::-1] if value.shape[0] > 1 else value + 0.1
        assert difference(cases / name, **{path: changed}) > OFF, f"{path} could be anything"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 41.0}}),
        ("llama", {"rms_norm_eps": 0.02}),
        ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 60.0}}),
        ("llama3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 60.0, "factor": 4.0}}),
        ("mistral", {"sliding_window": 6}),
        ("mistral", {"sliding_window": None}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("mixtral", {"sliding_window": 8}),
        ("qwen2", {"layer_types": ["sliding_attention", "sliding_attention"]}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen3", {"rms_norm_eps": 0.02}),
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2_other", {"activation_function": "gelu_new"}),
        ("gpt2", {"layer_norm_epsilon": 0.02}),
        ("vit", {"layer_norm_eps": 0.02}),
        ("vit", {"hidden_act": "gelu_new"}),
        ("bert", {"layer_norm_eps": 0.02}),
        ("bert_classes", {"hidden_act": "gelu"}),
    ],
)
def test_a_wrong_setting_is_seen(cases: Path, tmp_path: Path, name: str, wrong: dict[str, Any]) -> None:
    # Exact and approximate GELU differ by less than 5e-4 anywhere, so less than OFF can come of it.
    least = 10 * TOLERANCE if wrong.keys() & {"hidden_act", "activation_function"} else OFF
    assert difference(altered(cases / name, tmp_path, **wrong)) > least


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("llama", "attention_norm/scale", "mlp_norm/scale"),
        ("qwen3", "attention/query_norm/scale", "attention/key_norm/scale"),
        ("llama", "mlp/gate/kernel", "mlp/up/kernel"),
        ("mixtral", "mlp/gate", "mlp/up"),
        ("gpt2", "attention/key/kernel", "attention/value/kernel"),
        ("gpt2", "attention_norm/bias", "mlp_norm/bias"),
        ("vit", "attention_norm/scale", "mlp_norm/scale"),
        ("bert", "attention_norm/scale", "mlp_norm/scale"),
    ],
)
def test_tensors_in_each_other_s_place_are_seen(cases: Path, name: str, first: str, second: str) -> None:
    found, *_ = case(cases / name)
    first, second = f"blocks/1/{first}", f"blocks/1/{second}"
    swapped = {first: found.parameters[second], second: found.parameters[first]}
    assert difference(cases / name, **swapped) > OFF


def test_a_head_that_is_not_tied_is_no_tied_one(cases: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lm_head\.weight: not a part"):
        HF().read(altered(cases / "llama", tmp_path / "tied", tie_word_embeddings=True))
    with pytest.raises(DataError, match=r"lm_head\.weight: missing"):
        HF().read(altered(cases / "llama_biases", tmp_path / "untied", tie_word_embeddings=False))


def altered(path: Path, folder: Path, **values: Any) -> Path:
    """A copy of a case with other settings in its config.json."""
    copy = Path(shutil.copytree(path, folder / path.name))
    settings = copy / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **values}))
    return copy
