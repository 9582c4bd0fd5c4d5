"""ViT, with its classifier or without."""

from collections.abc import Sequence
from typing import Any

from assay_plugins.importers.rules import Plan, Rule, from_heads, linear, norm, same, to_heads
from assay_plugins.importers.settings import Settings
from assay_plugins.importers.tensors import Tensors

GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def plan(settings: Settings, tensors: Tensors) -> Plan:
    """How to import it. Raises ConfigError for what model.vit cannot represent."""
    s = settings
    qkv = s.flag("qkv_bias", True)
    patch, channels = _square(s, "patch_size", 16), s.integer("num_channels", 3)
    options: dict[str, Any] = {
        "patch": patch,
        "width": s.integer("hidden_size"),
        "layers": s.integer("num_hidden_layers"),
        "heads": s.integer("num_attention_heads"),
        "mlp_width": s.integer("intermediate_size"),
        "pooling": "cls",
        "norm_epsilon": s.number("layer_norm_eps", 1e-12),
        "activation": s.choice("hidden_act", GELU, "gelu"),
        "biases": True if qkv else ("out", "mlp", "norm"),
    }
    width, count = options["width"], (_square(s, "image_size", 224) // patch) ** 2 + 1
    prefix = "vit." if any(name.startswith("vit.") for name in tensors.shapes) else ""
    embeddings = f"{prefix}embeddings"
    kernel = Rule(
        "patches/kernel",
        (f"{embeddings}.patch_embeddings.projection.weight",),
        (width, channels, patch, patch),
        (patch * patch * channels, width),
        lambda x: x.transpose(2, 3, 1, 0),
    )
    rules = [
        kernel,
        same("patches/bias", f"{embeddings}.patch_embeddings.projection.bias", (width,)),
        same("cls", f"{embeddings}.cls_token", (1, 1, width), (width,)),
        same("positions", f"{embeddings}.position_embeddings", (1, count, width), (count, width)),
    ]
    for layer in range(options["layers"]):
        rules += _block(f"blocks/{layer}", f"{prefix}encoder.layer.{layer}", options, qkv)
    rules += norm("norm", f"{prefix}layernorm", width, bias=True)
    classifier = tensors.shapes.get("classifier.weight")
    if classifier is not None:
        rules += linear("head", "classifier", classifier[0], width, bias=True)
    return Plan("vit", options, rules, spare=_spare(prefix), notes=_notes(s, classifier is None))


def _square(s: Settings, name: str, default: int) -> int:
    """A side, where the two are equal."""
    value = s.values.get(name, default)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise s.unsupported(name, ["a square"])
        value = value[0]
    return Settings({name: value}, s.path).integer(name)


def _spare(prefix: str) -> dict[str, str]:
    """What a classifier does not use."""
    return {
        f"{prefix}pooler.*": "the classifier does not read it",
        f"{prefix}embeddings.mask_token": "no patch is masked",
    }


def _notes(s: Settings, headless: bool) -> Sequence[str]:
    """What there is to know beyond the tensors."""
    absent = "there is no classifier in the files: with model.pretrained, set fresh = ('head',)"
    return [absent] if headless else []


def _block(ours: str, theirs: str, o: dict[str, Any], qkv: bool) -> list[Rule]:
    """The parameters of one block."""
    width, heads, hidden = o["width"], o["heads"], o["mlp_width"]
    size, attention = width // heads, f"{theirs}.attention.attention"
    rules = norm(f"{ours}/attention_norm", f"{theirs}.layernorm_before", width, bias=True)
    for name in ("query", "key", "value"):
        rules += to_heads(f"{ours}/attention/{name}", f"{attention}.{name}", heads, size, width, bias=qkv)
    rules += from_heads(f"{ours}/attention/out", f"{theirs}.attention.output.dense", heads, size, width, bias=True)
    rules += norm(f"{ours}/mlp_norm", f"{theirs}.layernorm_after", width, bias=True)
    rules += linear(f"{ours}/mlp/up", f"{theirs}.intermediate.dense", hidden, width, bias=True)
    return rules + linear(f"{ours}/mlp/down", f"{theirs}.output.dense", width, hidden, bias=True)
