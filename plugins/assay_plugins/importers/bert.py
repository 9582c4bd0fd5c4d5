"""BERT, with the head that predicts masked tokens, with a classifier, or with neither."""

from typing import Any

from assay_plugins.importers.rules import Plan, Rule, from_heads, linear, norm, same, to_heads
from assay_plugins.importers.settings import Settings
from assay_plugins.importers.tensors import Tensors
from assay_plugins.importers.vit import GELU

PREDICTIONS = "cls.predictions"


def plan(settings: Settings, tensors: Tensors) -> Plan:
    """How to import it. Raises ConfigError for what model.bert cannot represent."""
    s = settings
    s.must_be("is_decoder", False)
    s.must_be("add_cross_attention", False)
    s.must_be("tie_word_embeddings", True)
    s.must_be("position_embedding_type", "absolute")
    vocab, width, kinds = s.integer("vocab_size"), s.integer("hidden_size"), s.integer("type_vocab_size", 2)
    masked = f"{PREDICTIONS}.bias" in tensors.shapes
    options: dict[str, Any] = {
        "layers": s.integer("num_hidden_layers"),
        "width": width,
        "heads": s.integer("num_attention_heads"),
        "mlp_width": s.integer("intermediate_size"),
        "context": s.integer("max_position_embeddings", 512),
        "token_types": kinds,
        "head": "tokens" if masked else "classes",
        "norm_epsilon": s.number("layer_norm_eps", 1e-12),
        "activation": s.choice("hidden_act", GELU, "gelu"),
    }
    prefix = "bert." if any(name.startswith("bert.") for name in tensors.shapes) else ""
    embeddings = f"{prefix}embeddings"
    names = ("gamma", "beta") if f"{embeddings}.LayerNorm.gamma" in tensors.shapes else ("weight", "bias")
    rules = [
        same("tokens/embedding", f"{embeddings}.word_embeddings.weight", (vocab, width)),
        same("positions/embedding", f"{embeddings}.position_embeddings.weight", (options["context"], width)),
        same("types/embedding", f"{embeddings}.token_type_embeddings.weight", (kinds, width)),
        *norm("norm", f"{embeddings}.LayerNorm", width, bias=True, names=names),
    ]
    for layer in range(options["layers"]):
        rules += _block(f"blocks/{layer}", f"{prefix}encoder.layer.{layer}", options, names)
    head, notes = (_predictions(vocab, width, names), []) if masked else _classifier(prefix, width, tensors)
    spare = {f"{embeddings}.position_ids": "it counts 0, 1, …", "cls.seq_relationship.*": "the head does not read it"}
    if masked:
        spare[f"{prefix}pooler.*"] = "the head does not read it"
    repeats = {
        f"{PREDICTIONS}.decoder.weight": f"{embeddings}.word_embeddings.weight",
        f"{PREDICTIONS}.decoder.bias": f"{PREDICTIONS}.bias",
    }
    return Plan("bert", options, [*rules, *head], vocab, spare, repeats, notes)


def _block(ours: str, theirs: str, o: dict[str, Any], names: tuple[str, str]) -> list[Rule]:
    """The parameters of one block."""
    width, heads, hidden = o["width"], o["heads"], o["mlp_width"]
    size, attention = width // heads, f"{theirs}.attention"
    rules = []
    for name in ("query", "key", "value"):
        rules += to_heads(f"{ours}/attention/{name}", f"{attention}.self.{name}", heads, size, width, bias=True)
    rules += from_heads(f"{ours}/attention/out", f"{attention}.output.dense", heads, size, width, bias=True)
    rules += norm(f"{ours}/attention_norm", f"{attention}.output.LayerNorm", width, bias=True, names=names)
    rules += linear(f"{ours}/mlp/up", f"{theirs}.intermediate.dense", hidden, width, bias=True)
    rules += linear(f"{ours}/mlp/down", f"{theirs}.output.dense", width, hidden, bias=True)
    return rules + norm(f"{ours}/mlp_norm", f"{theirs}.output.LayerNorm", width, bias=True, names=names)


def _predictions(vocab: int, width: int, names: tuple[str, str]) -> list[Rule]:
    """The head for masked tokens; its matrix is the embedding."""
    rules = linear("head/transform", f"{PREDICTIONS}.transform.dense", width, width, bias=True)
    rules += norm("head/norm", f"{PREDICTIONS}.transform.LayerNorm", width, bias=True, names=names)
    return [*rules, same("head/bias", f"{PREDICTIONS}.bias", (vocab,))]


def _classifier(prefix: str, width: int, tensors: Tensors) -> tuple[list[Rule], list[str]]:
    """The pooler and the classifier, as far as there are any, and a note on what there is not."""
    rules: list[Rule] = []
    absent = []
    if f"{prefix}pooler.dense.weight" in tensors.shapes:
        rules += linear("head/pooler", f"{prefix}pooler.dense", width, width, bias=True)
    else:
        absent.append("head/pooler")
    shape = tensors.shapes.get("classifier.weight")
    if shape is not None:
        rules += linear("head/classifier", "classifier", shape[0], width, bias=True)
    else:
        absent.append("head/classifier")
    if not absent:
        return rules, []
    return rules, [
        f"there is no {' or '.join(absent)} in the files: with model.pretrained, set fresh = {tuple(absent)}"
    ]
