"""Exported models, called through the transformers library, give our logits and our text; wrong files are seen."""

import functools
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from assay.checkpoint.checkpoints import dotted
from assay.data.spec import ArraySpec, DataSpec
from assay.kinds import Model
from assay.network import make_network
from assay_plugins.exporters.hf import HF
from assay_plugins.exporters.tokenizer import QWEN2_WORDS
from assay_plugins.models.bert import BERT
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.vit import ViT
from assay_plugins.objectives.sampling import continuations
from assay_plugins.tokenizers.bpe import BPE
from assay_plugins.tokenizers.byte import Bytes
from assay_plugins.tokenizers.char import Char
from assay_plugins.tokenizers.encoder import LibraryEncoder
from assay_plugins.tokenizers.hf import HFTokenizer

TOLERANCE = 1e-5
ROWS, LENGTH, CONTEXT, GREEDY = 3, 24, 192, 128
SIZES: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "mlp_width": 40}
LLAMA: dict[str, Any] = {**SIZES, "kv_heads": 2, "head_dim": 10, "norm_epsilon": 0.03, "rope_theta": 37.0}
QWEN2: dict[str, Any] = {k: v for k, v in LLAMA.items() if k != "head_dim"}
GPT2: dict[str, Any] = {**SIZES, "norm": "layernorm", "position": "learned", "activation": "gelu_tanh", "biases": True}
DECODERS: dict[str, tuple[str, Model]] = {
    "llama": ("LlamaForCausalLM", Transformer(**LLAMA)),
    "llama_biases": ("LlamaForCausalLM", Transformer(**LLAMA, biases=("qkv", "out", "mlp"), tied_head=True)),
    "llama_linear": ("LlamaForCausalLM", Transformer(**LLAMA, rope_scaling=2.5, vocab_multiple=64)),
    "llama3": ("LlamaForCausalLM", Transformer(**LLAMA, rope_scaling=4.0, rope_band=(1.0, 3.0, 32))),
    "mistral": ("MistralForCausalLM", Transformer(**LLAMA, window=5)),
    "mixtral": ("MixtralForCausalLM", Transformer(**LLAMA, experts=4, window=7)),
    "qwen2": ("Qwen2ForCausalLM", Transformer(**QWEN2, biases=("qkv",), window=4, window_layers=(1,), tied_head=True)),
    "qwen3": (
        "Qwen3ForCausalLM",
        Transformer(**LLAMA, qk_norm=True, biases=("qkv", "out"), window=4, window_layers=(0,)),
    ),
    "gpt2": ("GPT2LMHeadModel", Transformer(**GPT2, norm_epsilon=0.03, tied_head=True)),
    "gpt2_other": ("GPT2LMHeadModel", Transformer(**{**GPT2, "activation": "gelu"})),
}
ENCODERS: dict[str, Model] = {
    "bert": BERT(**SIZES, token_types=3, norm_epsilon=0.03),
    "bert_classes": BERT(**SIZES, token_types=3, head="classes", activation="gelu_tanh"),
    "vit": ViT(patch=4, **SIZES, norm_epsilon=0.03),
    "vit_other": ViT(patch=4, **SIZES, biases=("out", "mlp", "norm"), activation="gelu_tanh"),
}
TOKENIZERS = {"llama": BPE(vocab_size=300), "qwen3": Bytes(), "mixtral": Char(extra="äß漢🙂")}
PROMPTS = ["def ", "import os\n\nclass ", "x"]
TEXT = (Path(sysconfig.get_paths()["stdlib"]) / "heapq.py").read_text(encoding="utf-8")


@functools.cache
def case(name: str) -> tuple[Model, DataSpec, dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """(model, spec, its parameters, batches by name)."""
    model = DECODERS[name][1] if name in DECODERS else ENCODERS[name]
    rng = np.random.default_rng(len(name))
    if isinstance(model, ViT):
        spec = DataSpec({"image": ArraySpec((16, 16, 3), "float32")}, num_classes=7)
        batches = {"plain": {"image": rng.normal(size=(ROWS, 16, 16, 3)).astype(np.float32)}}
    else:
        encoder = qwen2_encoder() if name == "qwen2" else TOKENIZERS.get(name, BPE(vocab_size=300)).fit([TEXT])
        elements = {"inputs": ArraySpec((CONTEXT,), "int32")}
        spec = DataSpec(elements, vocab_size=encoder.vocab_size, num_classes=5, encoder=encoder)
        batches = _token_batches(model, rng, encoder.vocab_size)
    return model, spec, redrawn(model, spec), batches


def qwen2_encoder() -> LibraryEncoder:
    """Words as Qwen 2's, merges of our own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.ByteLevel()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        return HFTokenizer(path=folder, separator="<|endoftext|>").fit([])


def _token_batches(model: Model, rng: np.random.Generator, vocab: int) -> dict[str, dict[str, np.ndarray]]:
    """Rows of one segment; rows with several segments at positions of their own; one token."""

    def ids(below: int) -> np.ndarray:
        return rng.integers(0, below, (ROWS, LENGTH)).astype(np.int32)

    segments = np.repeat([[1, 2, 0], [1, 1, 3], [2, 1, 0]], LENGTH // 3, axis=1).astype(np.int32)
    positions = np.tile(np.arange(LENGTH // 3, dtype=np.int32), (ROWS, 3))
    positions[2] = rng.permutation(LENGTH)  # where they do not count on, no other text begins
    types = {"token_types": ids(3)} if isinstance(model, BERT) else {}
    packed = {"inputs": ids(vocab), "segment_ids": segments, "positions": positions, **types}
    return {"plain": {"inputs": ids(vocab), **types}, "packed": packed, "one": {"inputs": ids(vocab)[:1, :1]}}


def redrawn(model: Model, spec: DataSpec) -> dict[str, np.ndarray]:
    """New values for all parameters, at a scale where each matters: see make_cases.redraw."""
    rng, found = np.random.default_rng(0), {}
    for path, leaf in dotted(make_network(model, spec).params).items():
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        *_, last = path.split(".")
        if last in ("scale",):
            value = 1.0 + 0.3 * noise
        elif last == "bias":
            value = 0.3 * noise
        elif last in ("embedding", "cls", "positions") or path == "head.kernel":
            value = 0.15 * noise
        else:
            value = 1.2 * noise / _inputs(path, leaf.shape) ** 0.5
        found[path.replace(".", "/")] = value.astype(np.float32)
    return found


def _inputs(path: str, shape: tuple[int, ...]) -> int:
    """Numbers that each output of a map is the sum over."""
    if path.endswith("attention.out.kernel"):
        return shape[0] * shape[1]
    return shape[1] if path.split(".")[-1] in ("gate", "up", "down") else shape[0]


def module_of(name: str) -> Any:
    model, spec, parameters, _ = case(name)
    tree: dict[str, Any] = {}
    for path, value in parameters.items():
        *parents, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = jnp.asarray(value)
    return make_network(model, spec).merge(tree, {})


@functools.cache
def logits(name: str) -> dict[str, np.ndarray]:
    """Ours, of each batch."""
    module = module_of(name)
    call = jax.jit(lambda batch: module(batch, train=False, rngs=None))
    return {key: np.asarray(call(jax.tree.map(jnp.asarray, batch))) for key, batch in case(name)[3].items()}


def export(name: str, folder: Path) -> Path:
    """The model's files, and what it is to be called with."""
    model, spec, parameters, batches = case(name)
    path = folder / name
    path.mkdir(parents=True)
    layout, _ = HF(shard_bytes=40_000).save(model, spec, parameters, path)
    shutil.copy(HF().loader(), path / "loader.py")
    arrays = {f"{key}/{element}": value for key, batch in batches.items() for element, value in batch.items()}
    np.savez(path / "batches.npz", **arrays)
    facts: dict[str, Any] = {
        "facts": {"architecture": layout.config["architectures"][0], "output": "logits", "directory": "."}
    }
    facts["facts"]["columns"] = logits(name)["plain"].shape[-1]
    if spec.encoder is not None:
        facts["texts"] = [TEXT, *PROMPTS, "<|endoftext|>x"] if name != "mixtral" else [TEXT, "äß漢🙂"]
    if name in DECODERS:
        facts |= {"prompts": PROMPTS, "length": GREEDY}
    (path / "case.json").write_text(json.dumps(facts))
    return path


@pytest.fixture(scope="module")
def python() -> str:
    """That of the environment with transformers."""
    found = os.environ.get("ASSAY_PARITY_PYTHON")
    if not found:
        pytest.skip("needs an environment with the transformers library: run `make parity`")
    return found


def called(folder: Path, python: str) -> Path:
    """`folder`, after every model in it was called there."""
    script = Path(__file__).with_name("call_exports.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, script, folder], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exports(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for name in (*DECODERS, *ENCODERS):
        export(name, folder)
    return called(folder, python)


def difference(path: Path, name: str) -> float:
    """Largest difference of the library's logits from ours, over all batches."""
    found = np.load(path / "found.npz")
    return max(float(np.abs(found[key] - value).max()) for key, value in logits(name).items())


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_transformers_gives_our_logits(exports: Path, name: str) -> None:
    vocab = case(name)[1].vocab_size if name in DECODERS else None
    assert 0.3 < np.std(logits(name)["plain"][..., :vocab]) < 2, "the logits should be of the order of 1"
    assert difference(exports / name, name) <= TOLERANCE


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_writes_our_text(exports: Path, name: str) -> None:
    spec = case(name)[1]
    found = json.loads((exports / name / "found.json").read_text())
    assert found["architecture"] == DECODERS[name][0]
    ours = continuations(module_of(name), spec, PROMPTS, length=GREEDY, temperature=0.0, top_k=None, seed=0)
    assert found["continuations"] == ours
    assert max(found["lengths"]) == GREEDY, "every text ended early"


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_transformers_has_our_ids(exports: Path, name: str) -> None:
    encoder = case(name)[1].encoder
    assert encoder is not None
    found = json.loads((exports / name / "found.json").read_text())
    texts = json.loads((exports / name / "case.json").read_text())["texts"]
    assert found["ids"] == [encoder.encode(text).tolist() for text in texts]
    assert found["eos"] == encoder.separator_id


def _swap(one: str, two: str) -> Callable[[dict[str, np.ndarray]], None]:
    def swap(tensors: dict[str, np.ndarray]) -> None:
        tensors[one], tensors[two] = tensors[two], tensors[one]

    return swap


def _transpose(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def transpose(tensors: dict[str, np.ndarray]) -> None:
        assert tensors[name].shape[0] == tensors[name].shape[1]
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    return transpose


LAYER = "model.layers.1"
WRONG: Mapping[str, tuple[str, Callable[[dict[str, np.ndarray]], None] | dict[str, Any]]] = {
    "gate_and_up": ("llama", _swap(f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight")),
    "norms": ("llama", _swap(f"{LAYER}.input_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight")),
    "transposed": ("gpt2", _transpose("transformer.h.1.attn.c_proj.weight")),
    "theta": ("llama", {"rope_theta": 41.0, "rope_parameters": {"rope_theta": 41.0, "rope_type": "default"}}),
    "epsilon": ("gpt2", {"layer_norm_epsilon": 0.02}),
    "window": ("mistral", {"sliding_window": 6}),
    "layers_with_a_window": ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
    "experts": ("mixtral", {"num_experts_per_tok": 1}),
}


@pytest.fixture(scope="module")
def wrong(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    for fault, (name, change) in WRONG.items():
        path = export(name, folder).rename(folder / fault)
        if isinstance(change, dict):
            settings = path / "config.json"
            settings.write_text(json.dumps({**json.loads(settings.read_text()), **change}))
        else:
            tensors = {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}
            for file in path.glob("model*"):
                file.unlink()
            change(tensors)
            save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return called(folder, python)


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_file_is_seen(wrong: Path, fault: str) -> None:
    assert difference(wrong / fault, WRONG[fault][0]) > 100 * TOLERANCE
