"""Reading Hugging Face's layout without torch: complete tables, exact values, and one clear error for everything else.

That the result computes what the transformers library computes is tested in tests/parity, in an environment of its own.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from assay import registry
from assay.cli import main
from assay.errors import ConfigError, DataError
from assay.imported import Imported
from assay.testing import ImporterKit
from assay_plugins.importers.hf import FAMILIES, HF
from assay_plugins.importers.settings import Settings
from assay_plugins.importers.tensors import Tensors
from assay_plugins.models.bert import BERT

SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "hidden_act": "silu"}
LLAMA = {"model_type": "llama", **DECODER, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False}
GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 64}
VIT = {"model_type": "vit", **SIZES, "image_size": 8, "patch_size": 4, "num_channels": 1}
BERT_ = {"model_type": "bert", **SIZES, "max_position_embeddings": 64, "tie_word_embeddings": True}
HEADS = {
    "vit": {"classifier.weight": (10, 8), "classifier.bias": (10,)},
    "bert": {"cls.predictions.bias": (11,)},
}
CONFIGS = {
    "llama": LLAMA,
    "llama_biases": {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **DECODER, "sliding_window": 8},
    "mixtral": {"model_type": "mixtral", **DECODER, "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2": {"model_type": "qwen2", **DECODER, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **DECODER, "head_dim": 6},
    "gpt2": GPT2,
    "vit": VIT,
    "bert": BERT_,
}


@pytest.fixture(autouse=True)
def plugins():
    with registry.temporary("model", "bert", BERT), registry.temporary("importer", "hf", HF):
        yield


def tensors_of(values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random tensors with all names and shapes that such a model has."""
    family = values["model_type"]
    prefix = "transformer" if family == "gpt2" else family
    shapes = {f"{prefix}.x": (), **HEADS.get(family, {})}
    plan = FAMILIES[family](Settings(values, Path("config.json")), Tensors(shapes, {}))
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=rule.shape).astype(np.float32) for rule in plan.rules for name in sorted(rule.sources)
    }


def save(folder: Path, values: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors_of(values) if tensors is None else tensors, folder / "model.safetensors")
    return folder


class _Kit(ImporterKit):
    name: str

    def plugin(self) -> HF:
        return HF()

    def example(self, directory: Path) -> Path:
        return save(directory / "model", CONFIGS[self.name])


class TestLlama(_Kit):
    name = "llama"


class TestVit(_Kit):
    name = "vit"


class TestBert(_Kit):
    name = "bert"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_has_every_parameter_of_the_model(name: str) -> None:
    kit = _Kit()
    kit.name = name
    kit.test_its_lines_make_a_model_with_these_parameters()


def test_matrices_are_transposed_and_split_into_heads(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    found = HF().read(save(tmp_path / "llama", LLAMA, tensors)).parameters
    theirs = tensors["model.layers.1.self_attn.q_proj.weight"]
    for head in range(4):
        ours = found["blocks/1/attention/query/kernel"][:, head]
        np.testing.assert_array_equal(ours, theirs[2 * head : 2 * head + 2].T)
    np.testing.assert_array_equal(found["blocks/0/mlp/up/kernel"], tensors["model.layers.0.mlp.up_proj.weight"].T)
    np.testing.assert_array_equal(found["norm/scale"], tensors["model.norm.weight"])


def test_settings_become_lines(tmp_path: Path) -> None:
    lines = HF().read(save(tmp_path / "llama", LLAMA)).model.splitlines()
    assert lines[0] == "experiment.model = @model.transformer()"
    assert {
        "model.transformer.layers = 2",
        "model.transformer.kv_heads = 2",
        "model.transformer.rope_theta = 500000.0",
        "model.transformer.norm_epsilon = 1e-05",
        "model.transformer.tied_head = False",
        "model.transformer.biases = False",
    } <= set(lines)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": None}, {"rope_theta": 10000.0}),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, {"rope_theta": 7.0}),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_theta": 500000.0, "rope_scaling": 2.0}),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            {"rope_scaling": 8.0, "rope_band": (1.0, 4.0, 8192)},
        ),
        ({"attention_bias": True}, {"biases": ("qkv", "out")}),
        ({"mlp_bias": True}, {"biases": ("mlp",)}),
        ({"num_key_value_heads": None}, {"kv_heads": 4}),
        ({"model_type": "mistral"}, {"window": 4096}),
        ({"model_type": "mistral", "sliding_window": None}, {}),
        ({"model_type": "mixtral", "rope_theta": None}, {"rope_theta": 1000000.0, "experts": 8}),
        ({"model_type": "qwen2", "sliding_window": 5}, {"biases": ("qkv",)}),
        ({"model_type": "qwen3"}, {"head_dim": 128, "qk_norm": True}),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            {"window": 5, "window_layers": (1,)},
        ),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            {"window": 5, "window_layers": (0,)},
        ),
    ],
)
def test_settings_of_decoders(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    values = {**LLAMA, **changes}
    plan = FAMILIES[values["model_type"]](Settings(values, Path("config.json")), Tensors({}, {}))
    assert expected.items() <= plan.options.items()
    assert ("window" in plan.options) == ("window" in expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: Any) -> None:
    tensors = {name: value.astype(dtype) for name, value in tensors_of(GPT2).items()}
    found = HF().read(save(tmp_path / "gpt2", GPT2, tensors)).parameters
    assert all(value.dtype == np.float32 for value in found.values())
    np.testing.assert_array_equal(found["tokens/embedding"], tensors["transformer.wte.weight"].astype(np.float32))


def test_shards_are_one_model(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole", GPT2)
    tensors = load_file(whole / "model.safetensors")
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "config.json").write_text(json.dumps(GPT2))
    names = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    one, other = HF().read(whole).parameters, HF().read(parts).parameters
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[path], other[path]) for path in one)
    (parts / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DataError, match=r"parts lacks model-00002-of-00003\.safetensors, which .*index\.json names"):
        HF().read(parts)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    tensors = tensors_of(GPT2)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    tensors["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), bool))
    assert HF().read(save(tmp_path / "gpt2", GPT2, tensors)).notes == [
        "lm_head.weight is left out: it repeats transformer.wte.weight, to which config.json ties it",
        "transformer.h.0.attn.bias is left out: it is the causal mask",
    ]
    plain = {name.removeprefix("transformer."): value for name, value in tensors_of(GPT2).items()}
    assert HF().read(save(tmp_path / "headless", GPT2, plain)).notes == []


def test_a_model_without_a_classifier_says_what_is_fresh(tmp_path: Path) -> None:
    tensors = {k: v for k, v in tensors_of(VIT).items() if not k.startswith("classifier")}
    tensors["vit.pooler.dense.weight"] = np.zeros((8, 8), np.float32)
    found = HF().read(save(tmp_path / "vit", VIT, tensors))
    assert "head/kernel" not in found.parameters
    assert found.notes == [
        "there is no classifier in the files: with model.pretrained, set fresh = ('head',)",
        "vit.pooler.dense.weight is left out: the classifier does not read it",
    ]


def test_old_names_of_bert_s_norms(tmp_path: Path) -> None:
    tensors = tensors_of(BERT_)
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in tensors.items()}
    one, two = HF().read(save(tmp_path / "new", BERT_, tensors)), HF().read(save(tmp_path / "old", BERT_, old))
    assert all(np.array_equal(one.parameters[path], two.parameters[path]) for path in one.parameters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "model_type = 'lama' cannot be imported; what can: bert, .* Did you mean 'llama'?"),
        ({"model_type": None}, "model_type = 'None' cannot be imported"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_type = 'yarn' cannot be imported; what can: default,",
        ),
        ({"rope_scaling": {"full": {}, "sliding": {}}}, "rope_parameters that differ by layer cannot be imported"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5 cannot be imported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' cannot be imported; what can: silu, swish"),
        ({"num_key_value_heads": 3}, "kv_heads = 3: must divide heads = 4"),
        ({"quantization_config": {"bits": 4}}, "quantised models are not read"),
        (
            {**GPT2, "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx = True cannot be imported",
        ),
        ({**GPT2, "activation_function": "relu"}, "activation_function = 'relu' cannot be imported"),
        ({**BERT_, "position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' cannot"),
        ({**BERT_, "is_decoder": True}, "is_decoder = True cannot be imported"),
        ({**VIT, "patch_size": [4, 2]}, r"patch_size = \[4, 2\] cannot be imported; what can: a square"),
    ],
)
def test_settings_that_cannot_be_represented(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = save(tmp_path / "model", {**LLAMA, **changes}, {"x": np.zeros(1, np.float32)})
    with pytest.raises(ConfigError, match=message):
        HF().read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, r"config\.json does not say hidden_size; it is needed"),
        ({"hidden_size": "8"}, "hidden_size = '8': must be a whole number, at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0: must be a whole number"),
        ({"rms_norm_eps": True}, "rms_norm_eps = True: must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1: must be true or false"),
    ],
)
def test_settings_that_are_damaged(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = save(tmp_path / "model", {**LLAMA, **changes}, {"x": np.zeros(1, np.float32)})
    with pytest.raises(DataError, match=message):
        HF().read(folder)


def test_every_misfit_of_tensors_is_listed(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = np.zeros(9, np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(8, np.float32)
    with pytest.raises(DataError) as caught:
        HF().read(save(tmp_path / "llama", LLAMA, tensors))
    _, *lines = str(caught.value).splitlines()
    assert lines == [
        "  model.layers.1.mlp.up_proj.weight: missing",
        "  model.norm.weight: has shape (9,), config.json says (8,)",
        "  model.layers.0.self_attn.q_proj.bias: not a part of this architecture",
    ]


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(GPT2)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    with pytest.raises(DataError, match=r"lm_head\.weight: not a part of this architecture"):
        HF().read(save(tmp_path / "gpt2", GPT2, tensors))


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of(GPT2)
    tensors["transformer.wte.weight"] = np.zeros((11, 8), np.int8)
    with pytest.raises(DataError, match=r"transformer\.wte\.weight has dtype I8; quantised models are not read"):
        HF().read(save(tmp_path / "gpt2", GPT2, tensors))


def test_a_pickle_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle, which is not read"):
        HF().read(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "gpt2", GPT2)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        HF().read(folder)


def test_the_command_writes_nothing_for_a_model_that_it_refuses(tmp_path: Path, capsys: Any) -> None:
    good, bad = save(tmp_path / "good", LLAMA), save(tmp_path / "bad", {**LLAMA, "hidden_act": "gelu"}, {})
    assert main(["import", "hf", str(bad), "--to", str(tmp_path / "out" / "bad")]) == 1
    assert not (tmp_path / "out").exists()
    assert main(["import", "hf", str(good), "--to", str(tmp_path / "out" / "good")]) == 0
    assert {p.name for p in (tmp_path / "out" / "good").iterdir()} == {
        "model.gin",
        "origin.json",
        "parameters.safetensors",
    }
    found = HF().read(good)
    assert isinstance(found, Imported)
    written = load_file(tmp_path / "out" / "good" / "parameters.safetensors")
    assert all(np.array_equal(written[path], value) for path, value in found.parameters.items())
