"""config.json of a decoder in each family that the transformers library has for it.

Each function writes what its family can say of the model and leaves out the rest; whether that is all of it, `layouts` finds out by reading
it back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assay_plugins.exporters.encoders import GELU
from assay_plugins.models.transformer import Transformer


def llama(model: Transformer, vocab: int, context: int) -> dict[str, Any]:
    """Llama: biases of the attention and of the feed-forward, scaled angles, no window."""
    config = _gated("LlamaForCausalLM", model, vocab, context)
    biases = {"attention_bias": _has(model, "qkv"), "mlp_bias": model.experts is None and _has(model, "mlp")}
    return config | biases | {"head_dim": model.block.head_dim}


def mistral(model: Transformer, vocab: int, context: int) -> dict[str, Any]:
    """Mistral: no biases; the window in every layer."""
    config = _gated("MistralForCausalLM", model, vocab, context)
    return config | {"head_dim": model.block.head_dim, "sliding_window": model.window}


def mixtral(model: Transformer, vocab: int, context: int) -> dict[str, Any]:
    """Mixtral: Mistral with experts."""
    experts = {
        "num_local_experts": model.experts or 1,
        "num_experts_per_tok": model.experts_per_token if model.experts else 1,
        "router_jitter_noise": 0.0,
    }
    return mistral(model, vocab, context) | experts | {"architectures": ["MixtralForCausalLM"]}


def qwen2(model: Transformer, vocab: int, context: int) -> dict[str, Any]:
    """Qwen 2: biases of queries, keys and values; heads that make up the width; the window in some layers."""
    return _gated("Qwen2ForCausalLM", model, vocab, context) | _windows(model)


def qwen3(model: Transformer, vocab: int, context: int) -> dict[str, Any]:
    """Qwen 3: norms of queries and keys, biases of the attention or none, the window in some layers."""
    config = _gated("Qwen3ForCausalLM", model, vocab, context) | _windows(model)
    return config | {"head_dim": model.block.head_dim, "attention_bias": _has(model, "qkv")}


def gpt2(model: Transformer, vocab: int, context: int) -> dict[str, Any]:
    """GPT-2: LayerNorm, learned positions, GELU, biases everywhere."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": vocab,
        "n_positions": context,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.block.mlp_width,
        "activation_function": GELU.get(model.activation, "gelu_new"),
        "layer_norm_epsilon": model.norm_epsilon,
        "tie_word_embeddings": model.tied_head,
        "attn_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
    }


FAMILIES: Mapping[str, Callable[[Transformer, int, int], dict[str, Any]]] = {
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gpt2": gpt2,
}
"""model_type -> its config.json of (model, vocabulary, positions); of those that express a model the first is taken."""


def _gated(name: str, model: Transformer, vocab: int, context: int) -> dict[str, Any]:
    """What Llama and its relatives say alike."""
    block = model.block
    return {
        "architectures": [name],
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "hidden_size": model.width,
        "intermediate_size": block.mlp_width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": block.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_head,
        "attention_dropout": model.dropout,
        **_angles(model),
    }


def _angles(model: Transformer) -> dict[str, Any]:
    """The rotary angles, as transformers 5 reads them and, beside that, as readers of older files do."""
    scaling: dict[str, Any] = {"rope_type": "default"}
    if model.rope_band is not None:
        low, high, context = model.rope_band
        scaling = {
            "rope_type": "llama3",
            "factor": model.rope_scaling,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }
    elif model.rope_scaling != 1.0:
        scaling = {"rope_type": "linear", "factor": model.rope_scaling}
    older = None if scaling["rope_type"] == "default" else scaling
    return {
        "rope_parameters": {"rope_theta": model.rope_theta, **scaling},
        "rope_theta": model.rope_theta,
        "rope_scaling": older,
    }


def _windows(model: Transformer) -> dict[str, Any]:
    """The window, and the layers that have it."""
    windowed: Sequence[bool] = [model.block_at(layer).window is not None for layer in range(model.layers)]
    if not any(windowed):
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True,
        "sliding_window": model.window,
        "max_window_layers": windowed.index(True),
        "layer_types": ["sliding_attention" if there else "full_attention" for there in windowed],
    }


def _has(model: Transformer, place: Any) -> bool:
    return model.block.has_bias(place)
