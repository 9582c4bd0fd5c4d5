"""Calls a model in Hugging Face's layout through transformers, with Assay's names and shapes. Needs transformers, torch and numpy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

Arrays = dict[str, np.ndarray]
MASKED = -1e30  # the logit of ids that only pad a vocabulary, which the files leave out
NAMES = {"token_types": "token_type_ids", "positions": "position_ids"}


def load(artifact: Path, manifest: dict[str, Any], facts: dict[str, Any]) -> Callable[[str, Arrays], Arrays]:
    """(program, inputs) -> outputs, for the program "forward"."""
    model_class: Any = getattr(transformers, facts["architecture"])
    known = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not known:
        raise ValueError(f"manifest.json: {facts['architecture']!r} is no model of transformers")
    files = artifact / Path(facts["directory"]).name  # of the artifact, whatever the manifest says
    how = {"dtype": "auto", "attn_implementation": "eager", "use_safetensors": True}
    model = model_class.from_pretrained(files, **how).eval()
    model.config.use_cache = False

    def call(program: str, inputs: Arrays) -> Arrays:
        with torch.no_grad():
            logits = _forward(model, inputs)
        padding = [(0, 0)] * (logits.ndim - 1) + [(0, facts["columns"] - logits.shape[-1])]
        return {facts["output"]: np.pad(logits, padding, constant_values=MASKED)}

    return call


def _forward(model: Any, inputs: Arrays) -> np.ndarray:
    """The logits. A token attends within its segment: each segment of a row is called alone, its tokens at their own positions."""
    if "image" in inputs:
        return _numbers(model(pixel_values=torch.from_numpy(inputs["image"].transpose(0, 3, 1, 2).copy())))
    inputs = {"positions": np.broadcast_to(np.arange(inputs["inputs"].shape[1]), inputs["inputs"].shape), **inputs}
    segments = inputs.pop("segment_ids", None)
    if segments is None or (segments == segments[:1, :1]).all():
        return _rows(model, inputs)
    return np.stack([_row(model, {k: v[i] for k, v in inputs.items()}, segments[i]) for i in range(len(segments))])


def _row(model: Any, inputs: Arrays, segments: np.ndarray) -> np.ndarray:
    """The logits of one row. A classifier reads the first token, so its segment alone."""
    first = np.flatnonzero(segments == segments[0])
    whole = _rows(model, {k: v[None, first] for k, v in inputs.items()})[0]
    if whole.ndim == 1:
        return whole
    logits = np.zeros((len(segments), whole.shape[-1]), whole.dtype)
    logits[first] = whole
    for segment in set(segments.tolist()) - {int(segments[0])}:
        where = np.flatnonzero(segments == segment)
        logits[where] = _rows(model, {k: v[None, where] for k, v in inputs.items()})[0]
    return logits


def _rows(model: Any, inputs: Arrays) -> np.ndarray:
    """The logits of rows of one segment each."""
    tensors = {NAMES.get(k, k): torch.from_numpy(np.array(v, np.int64)) for k, v in inputs.items() if k != "inputs"}
    ids = torch.from_numpy(np.array(inputs["inputs"], np.int64))
    # A mask of ones: without mask and cache, transformers begins a new text wherever positions do not count on.
    return _numbers(model(input_ids=ids, attention_mask=torch.ones_like(ids), **tensors))


def _numbers(output: Any) -> np.ndarray:
    return output.logits.float().numpy()
