"""Hugging Face's layout: what is written is read back to the same bits, and what it cannot say is refused by name."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from assay import config, registry
from assay.checkpoint.checkpoints import dotted
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ExportError
from assay.exported import Exported, Program, Signature, Tensor
from assay.kinds import Model
from assay.network import make_network
from assay_plugins.exporters.hf import HF
from assay_plugins.exporters.layouts import NEUTRAL
from assay_plugins.importers.hf import HF as Importer
from assay_plugins.importers.rules import Rule
from assay_plugins.models.bert import BERT
from assay_plugins.models.lora import LoRA
from assay_plugins.models.mlp import MLP
from assay_plugins.models.pretrained import Pretrained
from assay_plugins.models.transformer import Transformer
from assay_plugins.models.vit import ViT
from assay_plugins.models.with_reference import WithReference

EXPERIMENT = """
experiment.dataset = @dataset.digits()
experiment.objective = @objective.next_token()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-3
experiment.parallelism = @parallelism.data_parallel()
experiment.steps = 1
experiment.batch_size = 1
"""
TEXT = DataSpec({"inputs": ArraySpec((16,), "int32")}, vocab_size=13, num_classes=5)
IMAGES = DataSpec({"image": ArraySpec((8, 8, 3), "float32"), "label": ArraySpec((), "int32")}, num_classes=5)
SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 4, "mlp_width": 24}
LLAMA: dict[str, Any] = {**SIZES, "kv_heads": 2, "norm_epsilon": 0.03, "rope_theta": 37.0}
GPT2: dict[str, Any] = {**SIZES, "norm": "layernorm", "position": "learned", "activation": "gelu_tanh", "biases": True}
MODELS: dict[str, tuple[str, Model]] = {
    "llama": ("llama", Transformer(**LLAMA, head_dim=6)),
    "llama_tied": ("llama", Transformer(**LLAMA, tied_head=True, biases=("qkv", "out", "mlp"), dropout=0.1)),
    "llama_bare": ("llama", Transformer(**LLAMA, biases=("norm",), rope_scaling=2.5, experts_per_token=7)),
    "llama3": ("llama", Transformer(**LLAMA, rope_scaling=4.0, rope_band=(1.0, 3.0, 32), remat="block")),
    "mistral": ("mistral", Transformer(**LLAMA, window=5, head_dim=6)),
    "mistral_named": ("mistral", Transformer(**LLAMA, window=5, window_layers=(1, 0))),
    "mixtral": ("mixtral", Transformer(**LLAMA, experts=3, experts_per_token=1, window=7)),
    "mixtral_all": ("mixtral", Transformer(**LLAMA, experts=3)),
    "qwen2": ("qwen2", Transformer(**LLAMA, biases=("qkv",), window=4, window_layers=(1,), tied_head=True)),
    "qwen3": ("qwen3", Transformer(**LLAMA, qk_norm=True, head_dim=10, biases=("qkv", "out"))),
    "qwen3_window": ("qwen3", Transformer(**LLAMA, qk_norm=True, window=4, window_layers=(0,))),
    "gpt2": ("gpt2", Transformer(**GPT2, tied_head=True, context=20)),
    "gpt2_other": ("gpt2", Transformer(**{**GPT2, "activation": "gelu"}, norm_epsilon=0.02)),
    "bert": ("bert", BERT(**SIZES, token_types=3, norm_epsilon=0.03)),
    "bert_classes": ("bert", BERT(**SIZES, head="classes", activation="gelu_tanh", context=20)),
    "vit": ("vit", ViT(patch=4, **SIZES, norm_epsilon=0.03)),
    "vit_other": ("vit", ViT(patch=2, **SIZES, biases=("norm", "mlp", "out"), activation="gelu_tanh", dropout=0.2)),
}


@pytest.fixture(autouse=True)
def plugins() -> Iterator[None]:
    with registry.temporary("model", "bert", BERT):
        yield


def spec_of(model: Model) -> DataSpec:
    return IMAGES if isinstance(model, ViT) else TEXT


def drawn(model: Model, spec: DataSpec, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random arrays for all parameters and Frozen variables."""
    network, rng = make_network(model, spec), np.random.default_rng(0)
    shapes = {**dotted(network.params), **dotted(network.frozen)}
    return {path.replace(".", "/"): rng.normal(size=x.shape).astype(dtype) for path, x in shapes.items()}


def saved(model: Model, folder: Path, weights: dict[str, np.ndarray] | None = None, **options: Any) -> dict[str, Any]:
    """Write the model into a new folder; its config.json."""
    folder.mkdir()
    spec = spec_of(model)
    HF(**options).save(model, spec, drawn(model, spec) if weights is None else weights, folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path, name: str) -> None:
    family, model = MODELS[name]
    weights = drawn(model, spec_of(model))
    written = saved(model, tmp_path / "model", weights)
    assert written["model_type"] == family
    found = Importer().read(tmp_path / "model")
    assert found.notes == []
    read = config.load_text(f"{found.model}\n{EXPERIMENT}").experiment.model
    assert type(read) is type(model)
    assert found.parameters.keys() == weights.keys()
    for path, value in weights.items():
        np.testing.assert_array_equal(found.parameters[path], value, strict=True, err_msg=path)
    again = saved(read, tmp_path / "again", weights)
    assert {k: v for k, v in again.items() if "drop" not in k} == {k: v for k, v in written.items() if "drop" not in k}
    files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "again")]
    assert files[0].keys() == files[1].keys()
    assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0])


REFUSED: dict[str, tuple[Model, list[str]]] = {
    "qk_norm with a window and biases in the feed-forward": (
        Transformer(**LLAMA, qk_norm=True, biases=("qkv", "mlp")),
        ["qwen3", r"biases = \('qkv', 'mlp'\): qwen3 has \('qkv', 'out'\)"],
    ),
    "biases of queries without those of the way back, all layers": (
        Transformer(**LLAMA, biases=("out",)),
        [r"biases = \('out',\): llama has \(\)"],
    ),
    "layernorm with rope": (Transformer(**LLAMA, norm="layernorm"), ["norm = 'layernorm': llama has 'rmsnorm'"]),
    "some layers with a window": (
        Transformer(**LLAMA, window=4, window_layers=(1,)),
        [r"window_layers = \(1,\): mistral has \(0, 1\)"],
    ),
    "no positions": (Transformer(**LLAMA, position="none"), ["position = 'none': llama has 'rope'"]),
    "learned positions with rmsnorm": (
        Transformer(**LLAMA, position="learned"),
        ["position = 'learned': llama has 'rope'"],
    ),
    "gelu with rope": (Transformer(**LLAMA, activation="gelu"), ["activation = 'gelu': llama has 'swiglu'"]),
    "qk_norm in gpt2": (Transformer(**GPT2, qk_norm=True), ["qk_norm = True: gpt2 has False"]),
    "kv_heads in gpt2": (Transformer(**GPT2, kv_heads=2), ["kv_heads = 2: gpt2 has 4"]),
    "head_dim in gpt2": (Transformer(**GPT2, head_dim=6), ["head_dim = 6: gpt2 has 4"]),
    "no biases of norms in gpt2": (
        Transformer(**{**GPT2, "biases": ("qkv", "out", "mlp")}),
        [r"biases = \('qkv', 'out', 'mlp'\): gpt2 has \('qkv', 'out', 'mlp', 'norm'\)"],
    ),
    "experts with qk_norm": (
        Transformer(**LLAMA, experts=3, qk_norm=True),
        ["qk_norm = True: mixtral has False"],
    ),
    "experts with a window in some layers": (
        Transformer(**LLAMA, experts=3, window=4, window_layers=(0,)),
        [r"window_layers = \(0,\): mixtral has \(0, 1\)"],
    ),
    "mean over patches": (ViT(patch=4, **SIZES, pooling="mean"), ["pooling = 'mean': vit has 'cls'"]),
    "some biases in vit": (ViT(patch=4, **SIZES, biases=("qkv",)), [r"biases = \('qkv',\): vit has"]),
    "another model": (MLP(hidden=(4,)), ["MLP cannot be written in Hugging Face's layout; what can: model.bert,"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_layout_lacks_is_named(tmp_path: Path, name: str) -> None:
    model, messages = REFUSED[name]
    spec = IMAGES if isinstance(model, MLP) else spec_of(model)
    for message in messages:
        with pytest.raises(ExportError, match=message):
            HF().save(model, spec, drawn(model, spec), tmp_path)
    assert not list(tmp_path.iterdir())


# Values of every option that changes an output; of each the first that a base below does not have is tried.
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "transformer": {
        "layers": [3],
        "width": [32],
        "heads": [2],
        "kv_heads": [1],
        "head_dim": [8],
        "mlp_width": [20],
        "norm": ["layernorm", "rmsnorm"],
        "norm_epsilon": [0.5],
        "position": ["none"],
        "rope_theta": [5.0],
        "rope_scaling": [3.0],
        "rope_band": [(1.0, 2.0, 9)],
        "window": [3],
        "window_layers": [(0,)],
        "activation": ["gelu"],
        "tied_head": [True],
        "qk_norm": [True],
        "biases": [("out",)],
        "experts": [2],
        "experts_per_token": [1],
        "context": [18],
    },
    "bert": {
        "layers": [3],
        "width": [32],
        "heads": [2],
        "mlp_width": [20],
        "context": [18],
        "token_types": [4],
        "head": ["classes"],
        "activation": ["gelu_tanh"],
        "norm_epsilon": [0.5],
    },
    "vit": {
        "patch": [2],
        "width": [32],
        "layers": [3],
        "heads": [2],
        "mlp_width": [20],
        "pooling": ["mean"],
        "norm_epsilon": [0.5],
        "activation": ["gelu_tanh"],
        "biases": [("out",)],
    },
}
BASES: dict[str, list[Model]] = {
    "transformer": [
        Transformer(**LLAMA, window=4),
        Transformer(**LLAMA, experts=3, window=4),
        Transformer(**GPT2, context=17),
    ],
    "bert": [BERT(**SIZES)],
    "vit": [ViT(patch=4, **SIZES)],
}


@pytest.mark.parametrize("plugin", OPTIONS)
def test_every_option_is_expressed_or_refused(tmp_path: Path, plugin: str) -> None:
    for number, base in enumerate(BASES[plugin]):
        names = {field.name for field in dataclasses.fields(base)} - set(NEUTRAL)  # type: ignore[arg-type]
        assert names == OPTIONS[plugin].keys(), "an option is new: say here what it is exported to"
        plain = saved(base, tmp_path / f"{plugin}{number}")
        for name, values in OPTIONS[plugin].items():
            value = next(value for value in values if value != getattr(base, name))
            try:
                changed = dataclasses.replace(base, **{name: value})  # type: ignore[type-var]
            except ValueError:  # not with this base
                continue
            if _same_effect(changed, base, name):
                continue
            try:
                written = saved(changed, tmp_path / f"{plugin}{number}{name}")
            except ExportError as error:
                written, refused = None, str(error)
            assert written != plain, f"{name} was lost"
            assert written or f"{name} = " in refused, f"{name} is in the way and not named: {refused}"


def _same_effect(changed: Any, base: Any, name: str) -> bool:
    """Whether the option does nothing in that base, or is only a bound there."""
    if isinstance(base, Transformer):
        learned = base.position == "learned"
        return (name.startswith("rope") and learned) or (name == "experts_per_token" and base.experts is None)
    return False


def test_shards_and_their_index(tmp_path: Path) -> None:
    model = MODELS["mixtral"][1]
    saved(model, tmp_path / "one")
    saved(model, tmp_path / "many", shard_bytes=4000)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    for file in files:
        part = load_file(tmp_path / "many" / file)
        assert sum(x.nbytes for x in part.values()) <= 4000 or len(part) == 1
        assert {name for name, where in index["weight_map"].items() if where == file} == part.keys()
        assert all(np.array_equal(value, whole[name]) for name, value in part.items())
    one, many = Importer().read(tmp_path / "one").parameters, Importer().read(tmp_path / "many").parameters
    assert all(np.array_equal(one[path], many[path]) for path in one)


@pytest.mark.parametrize(("dtype", "name"), [(ml_dtypes.bfloat16, "BF16"), (np.float16, "F16")])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, dtype: Any, name: str) -> None:
    model = MODELS["llama"][1]
    weights = drawn(model, TEXT, dtype)
    written = saved(model, tmp_path / "model", weights)
    assert written["dtype"] == written["torch_dtype"] == np.dtype(dtype).name
    with safe_open(tmp_path / "model" / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {name}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    found = Importer().read(tmp_path / "model").parameters
    assert all(np.array_equal(found[path], value.astype(np.float32)) for path, value in weights.items())


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_other_numbers_are_refused(tmp_path: Path, dtype: Any) -> None:
    model = MODELS["llama"][1]
    with pytest.raises(ExportError, match=f"is written in float32, float16, bfloat16; these are {np.dtype(dtype)}"):
        saved(model, tmp_path / "model", drawn(model, TEXT, dtype))
    mixed = drawn(model, TEXT)
    mixed["blocks/1/mlp/up/kernel"] = mixed["blocks/1/mlp/up/kernel"].astype(np.float16)
    with pytest.raises(ExportError, match=r"blocks/1/mlp/up/kernel is float16, others are float32"):
        saved(model, tmp_path / "mixed", mixed)


def test_padding_of_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    for tied in (False, True):
        model = Transformer(**LLAMA, vocab_multiple=8, vocab_size=14, tied_head=tied)
        weights = drawn(model, TEXT)
        assert weights["tokens/embedding"].shape[0] == 16
        assert saved(model, tmp_path / str(tied), weights)["vocab_size"] == 13
        found = Importer().read(tmp_path / str(tied)).parameters
        np.testing.assert_array_equal(found["tokens/embedding"], weights["tokens/embedding"][:13])
        if not tied:
            np.testing.assert_array_equal(found["head/kernel"], weights["head/kernel"][:, :13])


def test_what_is_around_a_model_is_taken_off(tmp_path: Path) -> None:
    inner = MODELS["llama"][1]
    adapted = LoRA(model=Pretrained(model=inner, path="nowhere"), rank=2, alpha=3.0)
    plain = {path.replace(".", "/"): x.shape for path, x in dotted(make_network(inner, TEXT).params).items()}
    rng = np.random.default_rng(1)
    base = {path: rng.normal(size=shape).astype(np.float32) for path, shape in plain.items()}
    a, b = rng.normal(size=(16, 2)).astype(np.float32), rng.normal(size=(2, 4, 6)).astype(np.float32)
    variables = {f"base/{path}": value for path, value in base.items()}
    variables |= {"adapters/blocks/0/attention/query/a": a, "adapters/blocks/0/attention/query/b": b}
    saved(adapted, tmp_path / "lora", variables)
    found = Importer().read(tmp_path / "lora").parameters
    query = "blocks/0/attention/query/kernel"
    np.testing.assert_allclose(found[query], base[query] + 1.5 * np.einsum("ir,rhd->ihd", a, b), rtol=1e-5, atol=1e-5)
    assert all(np.array_equal(found[path], base[path]) for path in base if path != query)
    pair = {
        f"{part}/{path}": value + (part == "reference")
        for part in ("policy", "reference")
        for path, value in base.items()
    }
    saved(WithReference(model=inner), tmp_path / "pair", pair)
    found = Importer().read(tmp_path / "pair").parameters
    assert all(np.array_equal(found[path], base[path]) for path in base)


def test_parameters_that_are_not_the_model_s_are_named(tmp_path: Path) -> None:
    model = MODELS["llama"][1]
    weights = drawn(model, TEXT)
    del weights["norm/scale"]
    weights["blocks/0/mlp/up/kernel"] = weights["blocks/0/mlp/up/kernel"].T
    with pytest.raises(ExportError) as caught:
        saved(model, tmp_path / "model", weights)
    assert str(caught.value).splitlines()[1:] == [
        "  blocks/0/mlp/up/kernel: (24, 16), the layout has (16, 24)",
        "  norm/scale: missing, the layout has (16,)",
    ]


def test_weights_of_fewer_bits_are_refused_by_name(tmp_path: Path) -> None:
    model = MODELS["llama"][1]
    weights: dict[str, Any] = drawn(model, TEXT)
    del weights["norm/scale"]
    with pytest.raises(ExportError, match="missing, the layout has") as caught:
        saved(model, tmp_path / "plain", weights)
    assert "transforms" not in str(caught.value)
    weights = drawn(model, TEXT)
    kernel = weights.pop("blocks/0/mlp/up/kernel")
    weights |= {"blocks/0/mlp/up/kernel/values": kernel.astype(np.int8), "blocks/0/mlp/up/kernel/scales": kernel[0]}
    with pytest.raises(ExportError, match="leave out transforms that store others, such as int8"):
        saved(model, tmp_path / "quantised", weights)


def test_a_file_that_reads_back_otherwise_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama"][1]
    monkeypatch.setattr(Rule, "part", lambda self, source, array, tensor: tensor.fill(1.0))
    with pytest.raises(ExportError, match=r"blocks/0/attention/query/kernel.* differ when they are read back"):
        saved(model, tmp_path / "model")


def test_it_writes_what_is_exported(tmp_path: Path) -> None:
    model = MODELS["mixtral"][1]
    output = {"output": Tensor(("batch", "seq", 13), "float32")}
    programs = [Program("forward", lambda weights, inputs: {}, Signature({}, output))]
    (tmp_path / "hf").mkdir()
    written = HF().write(Exported(model, TEXT, programs, {}, drawn(model, TEXT), {}, {}), tmp_path / "hf")
    assert written.programs == ("forward",)
    files = ["config.json", "model.safetensors"]
    facts = {"architecture": "MixtralForCausalLM", "output": "output", "columns": 13, "directory": "hf", "files": files}
    assert written.facts == facts
    assert HF().loader().name == "hf_loader.py"
    assert HF().loader().is_file()


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    model, spec = MODELS["vit"][1], dataclasses.replace(IMAGES, elements={"image": ArraySpec((8, 12, 3), "float32")})
    with pytest.raises(ExportError, match="images of 8 x 12: Hugging Face's layout has square ones"):
        HF().save(model, spec, drawn(model, spec), tmp_path)
