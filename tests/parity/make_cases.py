"""Small random models of the transformers library, with what they compute: CASE/config.json, model.safetensors, expected.npz.

Run in the environment that `make parity` builds; nothing of Assay is imported here. Every parameter is redrawn at a scale where it
matters, and constants (the base of the angles, epsilons) are far from their defaults: with a library's own initialisation a wrong
base moves the logits by a few thousandths only.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCAB, LENGTH, ROWS = 61, 24, 3
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 0.03}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 60.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}
ROPE = {"rope_type": "default", "rope_theta": 37.0}
GPT2 = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 0.03}
BERT = {**SIZES, "max_position_embeddings": 32, "type_vocab_size": 3, "layer_norm_eps": 0.03}
VIT = {**SIZES, "image_size": 16, "patch_size": 4, "num_channels": 3, "num_labels": 7, "layer_norm_eps": 0.03}
del VIT["vocab_size"]

# name -> (class, its configuration)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**DECODER, "rope_parameters": ROPE}),
    "llama_biases": (
        "LlamaForCausalLM",
        {**DECODER, "rope_parameters": ROPE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama3": ("LlamaForCausalLM", {**DECODER, "rope_parameters": LLAMA3}),
    "llama_linear": (
        "LlamaForCausalLM",
        {**DECODER, "rope_parameters": {"rope_type": "linear", "rope_theta": 37.0, "factor": 2.5}},
    ),
    "llama_bf16": ("LlamaForCausalLM", {**DECODER, "rope_parameters": ROPE, "dtype": "bfloat16"}),
    "mistral": ("MistralForCausalLM", {**DECODER, "rope_parameters": ROPE, "sliding_window": 5}),
    "mixtral": (
        "MixtralForCausalLM",
        {**DECODER, "rope_parameters": ROPE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        {
            **{k: v for k, v in DECODER.items() if k != "head_dim"},
            "rope_parameters": ROPE,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {**DECODER, "rope_parameters": ROPE, "attention_bias": True}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2_other": (
        "GPT2LMHeadModel",
        {**GPT2, "n_inner": 48, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "gpt2_headless": ("GPT2Model", GPT2),
    "vit": ("ViTForImageClassification", VIT),
    "vit_other": ("ViTForImageClassification", {**VIT, "qkv_bias": False, "hidden_act": "gelu_new"}),
    "bert": ("BertForMaskedLM", BERT),
    "bert_classes": ("BertForSequenceClassification", {**BERT, "num_labels": 5, "hidden_act": "gelu_new"}),
    "bert_pretraining": ("BertForPreTraining", BERT),
}
SHARDED = ("gpt2_other", "mixtral")


def main(folder: Path) -> None:
    """Write every case below `folder`."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name, (kind, values) in CASES.items():
        torch.manual_seed(0)
        write(folder / name, kind, dict(values), "60KB" if name in SHARDED else "5GB")


def write(folder: Path, kind: str, values: dict[str, Any], shard: str) -> None:
    """One case."""
    dtype = values.pop("dtype", "float32")
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**values)).eval()
    redraw(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    inputs = draw_inputs(kind)
    with torch.no_grad():
        outputs = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        if kind == "GPT2Model":
            logits = outputs.last_hidden_state @ model.wte.weight.T
        else:
            logits = outputs.prediction_logits if kind == "BertForPreTraining" else outputs.logits
    np.savez(folder / "expected.npz", logits=logits.numpy(), **inputs)


def redraw(model: torch.nn.Module) -> None:
    """New values for all parameters: matrices with spread 1.2 / sqrt(inputs), scales about 1, biases and embeddings about 0."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim == 1:
            scale = "norm" in name.lower() or "ln_" in name
            parameter.data = 1.0 + 0.3 * noise if scale and name.endswith("weight") else 0.3 * noise
        elif any(part in name for part in ("embed", "wte", "wpe", "lm_head", "cls_token")):
            parameter.data = 0.15 * noise
        else:
            inputs = parameter.shape[0] if "c_" in name else parameter[0].numel()
            parameter.data = 1.2 * noise / inputs**0.5


def draw_inputs(kind: str) -> dict[str, np.ndarray]:
    """What the model is called with."""
    rng = np.random.default_rng(1)
    if kind.startswith("ViT"):
        return {"pixel_values": rng.normal(size=(ROWS, 3, 16, 16)).astype(np.float32)}
    inputs = {"input_ids": rng.integers(0, VOCAB, (ROWS, LENGTH))}
    if kind.startswith("Bert"):
        lengths = np.array([[LENGTH], [LENGTH - 5], [LENGTH - 11]])
        inputs["attention_mask"] = (np.arange(LENGTH)[None] < lengths).astype(np.int64)
        inputs["token_type_ids"] = rng.integers(0, 3, (ROWS, LENGTH))
    return inputs


if __name__ == "__main__":
    main(Path(sys.argv[1]))
