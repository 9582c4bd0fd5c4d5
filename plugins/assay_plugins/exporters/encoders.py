"""config.json of BERT and of ViT."""

from typing import Any

from assay.data.spec import DataSpec
from assay.errors import ExportError
from assay_plugins.models.bert import BERT
from assay_plugins.models.specs import images_of
from assay_plugins.models.vit import ViT

GELU = {"gelu": "gelu", "gelu_tanh": "gelu_new"}


def bert(model: BERT, spec: DataSpec, context: int) -> dict[str, Any]:
    """BERT with the head for masked tokens, or with a classifier."""
    kind = "BertForMaskedLM" if model.head == "tokens" else "BertForSequenceClassification"
    return _encoder(kind, model, model.head == "classes", spec) | {
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": context,
        "type_vocab_size": model.token_types,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }


def vit(model: ViT, spec: DataSpec) -> dict[str, Any]:
    """ViT with its classifier. Raises ExportError for images that are not square."""
    (height, width, channels), _ = images_of(spec, "vit")
    if height != width:
        raise ExportError(f"model.vit on images of {height} x {width}: Hugging Face's layout has square ones")
    return _encoder("ViTForImageClassification", model, True, spec) | {
        "image_size": height,
        "patch_size": model.patch,
        "num_channels": channels,
        "qkv_bias": model.block.has_bias("qkv"),
    }


def _encoder(name: str, model: BERT | ViT, classes: bool, spec: DataSpec) -> dict[str, Any]:
    """What both say alike."""
    labels = {str(i): f"LABEL_{i}" for i in range(spec.num_classes or 0)} if classes else {}
    named = {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}} if classes else {}
    return {
        "architectures": [name],
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.block.mlp_width,
        "hidden_act": GELU[model.activation],
        "layer_norm_eps": model.norm_epsilon,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
        **named,
    }
