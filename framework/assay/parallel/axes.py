"""The vocabulary of logical axes. Models name the dimensions of their arrays with it; parallelism plugins map it to a mesh.

A dimension that must never be divided is named None. A plugin may use further names where its parallelism rules list them.
"""

from collections.abc import Mapping

PARAMETER_AXES: Mapping[str, str] = {
    "vocab": "token ids, of embeddings and output heads",
    "embed": "the residual stream's width",
    "mlp": "the hidden width of a feed-forward block",
    "heads": "attention heads (or heads x head width, fused)",
    "kv_heads": "key and value heads (or kv heads x head width, fused)",
    "head_dim": "width of one head",
    "layers": "stacked blocks",
    "position": "learned positions",
    "classes": "labels",
    "conv_in": "input channels of a convolution",
    "conv_out": "output channels of a convolution",
    "features": "input features of a plain dense layer",
}

ACTIVATION_AXES: Mapping[str, str] = {
    "batch": "examples",
    "sequence": "positions in an activation",
    "act_embed": "the residual stream in an activation",
    "act_mlp": "the hidden width in an activation",
    "act_heads": "heads in an activation",
    "act_vocab": "logits over token ids",
}

AXES: Mapping[str, str] = {**PARAMETER_AXES, **ACTIVATION_AXES}
