"""Weights by path in safetensors: one file up to 5 GB, shards with an index above, read lazily."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import ExportError

SHARD_BYTES = 5_000_000_000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write(weights: Mapping[str, np.ndarray], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `weights` into `directory`, in the layout that the Hugging Face Hub uses for shards."""
    from safetensors.numpy import save_file

    shards = _shards({path: array.nbytes for path, array in weights.items()}, shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for name, paths in zip(names, shards, strict=True):
        # ascontiguousarray would make a scalar an array of one
        save_file({path: np.asarray(weights[path], order="C") for path in paths}, directory / name)
    if len(shards) > 1:
        where = {path: name for name, paths in zip(names, shards, strict=True) for path in paths}
        total = {"total_size": sum(array.nbytes for array in weights.values())}
        text = json.dumps({"metadata": total, "weight_map": where}, indent=1)
        (directory / INDEX).write_text(text + "\n", encoding="utf-8")


def _shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """The paths of each file, in order; an array that is larger than `most` has a file of its own."""
    found: list[list[str]] = [[]]
    room = most
    for path, size in sizes.items():
        if size > room and found[-1]:
            found.append([])
            room = most
        found[-1].append(path)
        room -= size
    return found


class Weights(Mapping[str, np.ndarray]):
    """The weights in a directory; an array is read when it is asked for. Raises ExportError for files that cannot be read."""

    def __init__(self, directory: Path) -> None:
        from safetensors import safe_open

        self._open: dict[str, Any] = {}
        for file in sorted(directory.glob("*.safetensors")):
            try:
                opened: Any = safe_open(file, framework="numpy")
            except Exception as error:
                raise ExportError(
                    f"{file} cannot be read: {error}; restore it from a copy, or export the run again"
                ) from error
            self._open |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, path: str) -> np.ndarray:
        return self._open[path].get_tensor(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)
