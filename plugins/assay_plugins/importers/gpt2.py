"""GPT-2. Its linear maps are stored as (inputs, outputs), queries, keys and values in one."""

import operator
from typing import Any

from assay_plugins.importers.rules import Plan, Rule, linear, norm, same
from assay_plugins.importers.settings import Settings
from assay_plugins.importers.tensors import Tensors
from assay_plugins.importers.vit import GELU

QKV = ("query", "key", "value")


def plan(settings: Settings, tensors: Tensors) -> Plan:
    """How to import it, saved with or without its head. Raises ConfigError for what model.transformer cannot represent."""
    s = settings
    s.must_be("scale_attn_weights", True)
    s.must_be("scale_attn_by_inverse_layer_idx", False)
    s.must_be("add_cross_attention", False)
    width, context, vocab = s.integer("n_embd"), s.integer("n_positions"), s.integer("vocab_size")
    tied = s.flag("tie_word_embeddings", True)
    options: dict[str, Any] = {
        "layers": s.integer("n_layer"),
        "width": width,
        "heads": s.integer("n_head"),
        "mlp_width": s.integer("n_inner", 4 * width),
        "norm": "layernorm",
        "norm_epsilon": s.number("layer_norm_epsilon", 1e-5),
        "position": "learned",
        "context": context,
        "activation": s.choice("activation_function", GELU, "gelu_new"),
        "tied_head": tied,
        "qk_norm": False,
        "biases": True,
    }
    prefix = "transformer." if any(name.startswith("transformer.") for name in tensors.shapes) else ""
    rules = [
        same("tokens/embedding", f"{prefix}wte.weight", (vocab, width)),
        same("positions/embedding", f"{prefix}wpe.weight", (context, width)),
    ]
    spare: dict[str, str] = {}
    for layer in range(options["layers"]):
        rules += _block(f"blocks/{layer}", f"{prefix}h.{layer}", options)
        spare |= dict.fromkeys(
            (f"{prefix}h.{layer}.attn.bias", f"{prefix}h.{layer}.attn.masked_bias"), "it is the causal mask"
        )
    rules += norm("norm", f"{prefix}ln_f", width, bias=True)
    if not tied:
        rules += linear("head", "lm_head", vocab, width, bias=False)
    return Plan("transformer", options, rules, vocab, spare, {"lm_head.weight": f"{prefix}wte.weight"} if tied else {})


def _block(ours: str, theirs: str, o: dict[str, Any]) -> list[Rule]:
    """The parameters of one block."""
    width, heads = o["width"], o["heads"]
    size = width // heads
    rules = norm(f"{ours}/attention_norm", f"{theirs}.ln_1", width, bias=True)
    rules += norm(f"{ours}/mlp_norm", f"{theirs}.ln_2", width, bias=True)
    fused = f"{theirs}.attn.c_attn"
    for i, name in enumerate(QKV):
        columns = operator.itemgetter((..., slice(i * width, (i + 1) * width)))
        rules += [
            Rule(
                f"{ours}/attention/{name}/kernel",
                (f"{fused}.weight",),
                (width, 3 * width),
                (width, heads, size),
                columns,
            ),
            Rule(
                f"{ours}/attention/{name}/bias",
                (f"{fused}.bias",),
                (3 * width,),
                (heads, size),
                columns,
            ),
        ]
    out = f"{theirs}.attn.c_proj"
    rules += [
        same(f"{ours}/attention/out/kernel", f"{out}.weight", (width, width), (heads, size, width)),
        same(f"{ours}/attention/out/bias", f"{out}.bias", (width,)),
    ]
    for path, name, inputs, outputs in (
        ("up", "c_fc", width, o["mlp_width"]),
        ("down", "c_proj", o["mlp_width"], width),
    ):
        rules += [
            same(f"{ours}/mlp/{path}/kernel", f"{theirs}.mlp.{name}.weight", (inputs, outputs)),
            same(f"{ours}/mlp/{path}/bias", f"{theirs}.mlp.{name}.bias", (outputs,)),
        ]
    return rules
