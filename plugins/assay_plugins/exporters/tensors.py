"""The tensors of a model in Hugging Face's layout, made of ours one by one, and the safetensors files that hold them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from assay.errors import ExportError
from assay_plugins.importers.rules import Rule, Shape
from assay_plugins.importers.tensors import FILE, INDEX

SHARD_BYTES = 5_000_000_000
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Exported(Mapping[str, np.ndarray]):
    """Their tensors by name, each made when it is asked for of the arrays that the rules name.

    arrays: ours by path, all of one floating point dtype. Raises ExportError for arrays of several dtypes, or of another kind.
    """

    def __init__(self, rules: Sequence[Rule], arrays: Mapping[str, np.ndarray], dtype: np.dtype[Any]) -> None:
        if dtype not in NAMES:
            raise ExportError(f"Hugging Face's layout is written in {', '.join(map(str, NAMES))}; these are {dtype}")
        self._arrays, self.dtype = arrays, dtype
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            for source in rule.sources:
                self._rules.setdefault(source, []).append(rule)

    def shape(self, name: str) -> Shape:
        """Of a tensor, without making it."""
        return self._rules[name][0].shape

    def size(self, name: str) -> int:
        """Bytes of a tensor, without making it."""
        return math.prod(self.shape(name)) * self.dtype.itemsize

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = np.empty(self.shape(name), self.dtype)
        for rule in self._rules[name]:
            array = np.asarray(self._arrays[rule.path])
            if array.dtype != self.dtype:
                raise ExportError(f"{rule.path} is {array.dtype}, others are {self.dtype}: the layout has one dtype")
            rule.part(name, array, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)


def save(tensors: Exported, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` (or one tensor) and their index. One tensor is in memory at a time."""
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write(directory / FILE, tensors, shards[0])
        return
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _write(directory / file, tensors, names)
    where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": sum(map(tensors.size, tensors))}, "weight_map": where}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Exported, most: int) -> list[list[str]]:
    """The names of each file's tensors, in order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in tensors:
        if shards[-1] and filled + tensors.size(name) > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensors.size(name)
    return shards


def _write(path: Path, tensors: Exported, names: Sequence[str]) -> None:
    """One safetensors file: the header's length, the header, the numbers. The library would hold all of them in memory, twice."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensors.size(name)
        header[name] = {"dtype": NAMES[tensors.dtype], "shape": tensors.shape(name), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensors[name].tofile(file)
