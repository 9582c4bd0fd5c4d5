"""Models in Hugging Face's layout, as transformers, vLLM, TGI and llama.cpp load it. Writing needs neither torch nor transformers."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.data.spec import DataSpec
from assay.errors import ExportError
from assay.exported import FLOATS, Exported, Written, bound_of
from assay.kinds import Model
from assay_plugins.exporters import tensors
from assay_plugins.exporters.layouts import Layout, layout_of
from assay_plugins.exporters.tokenizer import tokenizer_files
from assay_plugins.exporters.unwrapped import unwrapped
from assay_plugins.importers.hf import HF as Importer
from assay_plugins.importers.rules import Rule

REQUIREMENTS = ("transformers>=4.56", "torch", "safetensors")
PADDED = {"tokens/embedding": 0, "head/kernel": 1}
"""Parameters that are padded along the vocabulary, and the dimension."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HF:
    """Llama, Mistral, Mixtral, Qwen 2, Qwen 3, GPT-2, BERT and ViT, as the transformers library saves them.

    The family is the first that expresses model.transformer, model.bert or model.vit exactly; a model that none does is refused, with the
    options in the way. Padding of the vocabulary is left out.

    shard_bytes: of one safetensors file, at most. tokenizer: whether the tokenizer of the data is written too.
    """

    shard_bytes: int = tensors.SHARD_BYTES
    tokenizer: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for files without room."""
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes = {self.shard_bytes}: must be at least 1")

    def write(self, source: Exported, directory: Path) -> Written:
        """Write config.json, the safetensors files and, for text, the tokenizer's files and generation_config.json.

        Raises ExportError for a model or tokenizer that the layout cannot express, and where the importer reads something else back.
        """
        layout, files = self.save(source.model, source.spec, source.weights, directory)
        (output, tensor), *_ = source.program("forward").signature.outputs.items()
        facts = {"architecture": layout.config["architectures"][0], "output": output, "columns": tensor.shape[-1]}
        facts |= {"files": files, "directory": directory.name}
        stored = {str(weight.dtype) for weight in source.weights.values()} & set(FLOATS)  # transformers computes in it
        bound = bound_of(source.dtype, *stored)
        return Written(("forward",), facts, REQUIREMENTS, bound, _notes(layout))

    def loader(self) -> Path:
        """The file that calls it through transformers."""
        return Path(__file__).with_name("hf_loader.py")

    def example(self) -> Exported:
        """What the conformance kit has it write: a small Llama."""
        from assay_plugins.exporters.example import exported
        from assay_plugins.models.transformer import Transformer

        return exported(Transformer(layers=1, width=16, heads=2, norm_epsilon=1e-2))

    def save(
        self, model: Model, spec: DataSpec, weights: Mapping[str, np.ndarray], directory: Path
    ) -> tuple[Layout, list[str]]:
        """Write the files for a model on data of `spec`; (the layout, the files' names)."""
        model, arrays = unwrapped(model, weights)
        arrays = _without_padding(arrays, spec)
        layout = layout_of(model, spec, {path: tuple(array.shape) for path, array in arrays.items()})
        _compare(layout.plan.rules, arrays)
        dtype = np.asarray(arrays[layout.plan.rules[0].path]).dtype
        exported = tensors.Exported(layout.plan.rules, arrays, dtype)
        texts: dict[str, Mapping[str, Any]] = {
            "config.json": {**layout.config, **_ends(spec), "dtype": str(dtype), "torch_dtype": str(dtype)}
        }
        if self.tokenizer:
            texts.update(_of_text(spec, layout))
        for name, values in texts.items():
            (directory / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tensors.save(exported, directory, self.shard_bytes)
        _check(directory, arrays)
        return layout, sorted(path.name for path in directory.iterdir())


def _without_padding(arrays: Mapping[str, np.ndarray], spec: DataSpec) -> Mapping[str, np.ndarray]:
    """The arrays, of a vocabulary that was padded only the rows and columns of ids that there are."""
    found = dict(arrays)
    if spec.vocab_size is not None:
        for path in PADDED.keys() & found.keys():
            found[path] = found[path][: spec.vocab_size] if PADDED[path] == 0 else found[path][:, : spec.vocab_size]
    return found


def _compare(rules: Sequence[Rule], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ExportError unless the rules are for exactly these arrays."""
    wanted = {rule.path: rule.ours for rule in rules}
    given = {path: tuple(array.shape) for path, array in arrays.items()}
    if wanted != given:
        differ = sorted(path for path in wanted.keys() | given.keys() if wanted.get(path) != given.get(path))
        lines = [
            f"  {path}: {given.get(path, 'missing')}, the layout has {wanted.get(path, 'none')}" for path in differ
        ]
        other = any(path.rpartition("/")[0] in wanted for path in given.keys() - wanted.keys())
        hint = (
            "\nHugging Face's layout has plain floating point weights: leave out transforms that store others, such as int8"
            * other
        )
        raise ExportError("the model's parameters are not those that its options say:\n" + "\n".join(lines) + hint)


def _check(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ExportError unless the importer reads these arrays in `directory`, to the bit of what float32 holds."""
    found = Importer().read(directory).parameters
    wrong = [path for path, array in arrays.items() if not np.array_equal(_bits(found[path]), _bits(array))]
    if wrong:
        raise ExportError(f"{directory}: {', '.join(wrong)} differ when they are read back; write the model again")


def _bits(array: np.ndarray) -> np.ndarray:
    """Of an array as float32, in which NaN equals itself."""
    return np.ascontiguousarray(array).astype(np.float32, copy=False).view(np.uint32)


def _ends(spec: DataSpec) -> dict[str, int]:
    """The ids that begin, end and pad a text: documents are separated by one id."""
    separator = None if spec.encoder is None else spec.encoder.separator_id
    return {} if separator is None else {f"{kind}_token_id": separator for kind in ("bos", "eos", "pad")}


def _of_text(spec: DataSpec, layout: Layout) -> Mapping[str, Mapping[str, Any]]:
    """The further files of a model that reads text."""
    if spec.encoder is None:
        return {}
    context = layout.config.get("max_position_embeddings", layout.config.get("n_positions"))
    files = dict(tokenizer_files(spec.encoder, int(context), layout.config["model_type"]))
    if layout.plan.model == "transformer":
        files["generation_config.json"] = {"do_sample": False, "max_length": context, **_ends(spec)}
    return files


def _notes(layout: Layout) -> list[str]:
    """What somebody who loads it should know."""
    if layout.plan.model == "transformer":
        return ["transformers, vLLM and TGI keep their own cache: prefill and decode are theirs"]
    if layout.plan.model == "vit":
        return ["pixel_values are the dataset's images with the channels first; there is no preprocessor_config.json"]
    return []
