"""Llama, and the models that are Llama with a difference: Mistral, Mixtral, Qwen 2, Qwen 3."""

from typing import Any

from assay.errors import ConfigError
from assay_plugins.importers.rules import Plan, Rule, from_heads, linear, norm, same, to_heads, transposed
from assay_plugins.importers.settings import Settings
from assay_plugins.importers.tensors import Tensors

SILU = {"silu": "swiglu", "swish": "swiglu"}
NORM_EPSILON = {"mixtral": 1e-5}
THETA = {"mixtral": 1_000_000.0}
HEAD_DIM = {"qwen3": 128}  # of files that do not say it; the others' is width / heads


def plan(settings: Settings, tensors: Tensors) -> Plan:
    """How to import it. Raises ConfigError for what model.transformer cannot represent."""
    s, family = settings, settings.values["model_type"]
    options = _sizes(s, family) | _positions(s, family) | _window(s, family)
    qkv, out, mlp = _biases(s, family)
    biases = tuple(place for place, there in (("qkv", qkv), ("out", out), ("mlp", mlp)) if there)
    tied, vocab = s.flag("tie_word_embeddings", False), s.integer("vocab_size")
    options |= {
        "norm": "rmsnorm",
        "norm_epsilon": s.number("rms_norm_eps", NORM_EPSILON.get(family, 1e-6)),
        "activation": s.choice("hidden_act", SILU, "silu"),
        "tied_head": tied,
        "qk_norm": family == "qwen3",
        "biases": biases or False,
    }
    width = options["width"]
    rules = [same("tokens/embedding", "model.embed_tokens.weight", (vocab, width))]
    for layer in range(options["layers"]):
        rules += _block(f"blocks/{layer}", f"model.layers.{layer}", options)
    rules += norm("norm", "model.norm", width, bias=False)
    if not tied:
        rules += linear("head", "lm_head", vocab, width, bias=False)
    repeats = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
    buffers = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": "rope_theta says it" for i in range(options["layers"])
    }
    return Plan("transformer", options, rules, vocab, buffers, repeats)


def _sizes(s: Settings, family: str) -> dict[str, Any]:
    """Sizes, with the defaults of transformers' own classes."""
    width, heads = s.integer("hidden_size"), s.integer("num_attention_heads")
    experts = {}
    if family == "mixtral":
        experts = {
            "experts": s.integer("num_local_experts", 8),
            "experts_per_token": s.integer("num_experts_per_tok", 2),
        }
    return {
        "layers": s.integer("num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": s.integer("num_key_value_heads", heads),
        "head_dim": s.integer("head_dim", HEAD_DIM.get(family, width // heads)),
        "mlp_width": s.integer("intermediate_size"),
        **experts,
    }


def _positions(s: Settings, family: str) -> dict[str, Any]:
    """The angles' base and scaling: `rope_parameters`, or in older files `rope_theta` and `rope_scaling`."""
    given = s.values.get("rope_parameters") or s.values.get("rope_scaling") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise ConfigError(f"{s.path}: rope_parameters that differ by layer cannot be imported: {given!r}")
    rope = Settings({"rope_theta": s.values.get("rope_theta"), **given}, s.path)
    base = {"position": "rope", "rope_theta": rope.number("rope_theta", THETA.get(family, 10_000.0))}
    rope.must_be("partial_rotary_factor", 1.0, None)
    s.must_be("partial_rotary_factor", 1.0, None)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return base
    if kind == "linear":
        return {**base, "rope_scaling": rope.number("factor")}
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        context = rope.integer("original_max_position_embeddings")
        return {**base, "rope_scaling": rope.number("factor"), "rope_band": (low, high, context)}
    raise ConfigError(f"{s.path}: rope_type = {kind!r} cannot be imported; what can: default, linear, llama3")


def _window(s: Settings, family: str) -> dict[str, Any]:
    """The sliding window and the layers that have it."""
    if family == "llama":
        return {}
    if family in ("mistral", "mixtral"):
        width = s.values.get("sliding_window", 4096 if family == "mistral" else None)
        return {} if width is None else {"window": s.integer("sliding_window", width)}
    if not s.flag("use_sliding_window", False) or s.values.get("sliding_window", 4096) is None:
        return {}
    layers = s.integer("num_hidden_layers")
    kinds = s.values.get("layer_types") or [
        "sliding_attention" if i >= s.values.get("max_window_layers", 28) else "full_attention" for i in range(layers)
    ]
    if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise s.unsupported("layer_types", ["'sliding_attention' or 'full_attention' for each layer"])
    windowed = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    return {"window": s.integer("sliding_window", 4096), "window_layers": windowed} if windowed else {}


def _biases(s: Settings, family: str) -> tuple[bool, bool, bool]:
    """Whether (queries, keys and values; the projection back; the feed-forward) have biases."""
    if family == "qwen2":
        return True, False, False
    attention = family in ("llama", "qwen3") and s.flag("attention_bias", False)
    return attention, attention, family == "llama" and s.flag("mlp_bias", False)


def _block(ours: str, theirs: str, o: dict[str, Any]) -> list[Rule]:
    """The parameters of one block."""
    width, heads, kv_heads, size, biases = (o[k] for k in ("width", "heads", "kv_heads", "head_dim", "biases"))
    attention, qkv, out = f"{theirs}.self_attn", "qkv" in (biases or ()), "out" in (biases or ())
    rules = norm(f"{ours}/attention_norm", f"{theirs}.input_layernorm", width, bias=False)
    rules += to_heads(f"{ours}/attention/query", f"{attention}.q_proj", heads, size, width, bias=qkv)
    rules += to_heads(f"{ours}/attention/key", f"{attention}.k_proj", kv_heads, size, width, bias=qkv)
    rules += to_heads(f"{ours}/attention/value", f"{attention}.v_proj", kv_heads, size, width, bias=qkv)
    rules += from_heads(f"{ours}/attention/out", f"{attention}.o_proj", heads, size, width, bias=out)
    if o["qk_norm"]:
        rules += norm(f"{ours}/attention/query_norm", f"{attention}.q_norm", size, bias=False)
        rules += norm(f"{ours}/attention/key_norm", f"{attention}.k_norm", size, bias=False)
    rules += norm(f"{ours}/mlp_norm", f"{theirs}.post_attention_layernorm", width, bias=False)
    if "experts" in o:
        return rules + _experts(f"{ours}/mlp", f"{theirs}.block_sparse_moe", o)
    mlp, bias = f"{theirs}.mlp", "mlp" in (biases or ())
    rules += linear(f"{ours}/mlp/gate", f"{mlp}.gate_proj", o["mlp_width"], width, bias=bias)
    rules += linear(f"{ours}/mlp/up", f"{mlp}.up_proj", o["mlp_width"], width, bias=bias)
    return rules + linear(f"{ours}/mlp/down", f"{mlp}.down_proj", width, o["mlp_width"], bias=bias)


def _experts(ours: str, theirs: str, o: dict[str, Any]) -> list[Rule]:
    """The router, and the experts' matrices stacked."""
    width, hidden, count = o["width"], o["mlp_width"], o["experts"]

    def stacked(path: str, name: str, shape: tuple[int, int]) -> Rule:
        sources = tuple(f"{theirs}.experts.{i}.{name}.weight" for i in range(count))
        return transposed(f"{ours}/{path}", sources, shape, (count, *shape[::-1]))

    return [
        transposed(f"{ours}/router", (f"{theirs}.gate.weight",), (count, width)),
        stacked("gate", "w1", (hidden, width)),
        stacked("up", "w3", (hidden, width)),
        stacked("down", "w2", (width, hidden)),
    ]
