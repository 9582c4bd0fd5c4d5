"""The arrays of safetensors files: names and shapes from the headers, values read one by one, as float32."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  makes bfloat16 a numpy dtype, which safetensors looks up by name
import numpy as np
from safetensors import SafetensorError, safe_open

from assay.errors import DataError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a model directory. shapes: of every one, by name. files: which file holds it."""

    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path]

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32. Raises DataError naming its file when that is damaged."""
        with opened(self.files[name]) as file:
            return np.asarray(file.get_tensor(name)).astype(np.float32, copy=False)


def tensors_in(directory: Path) -> Tensors:
    """The tensors of `directory`; only headers are read. Raises DataError for files that are missing, damaged or without numbers."""
    shapes, files = {}, {}
    for path in files_of(directory):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                part = file.get_slice(name)
                if part.get_dtype() not in FLOATS and not is_buffer(part):
                    raise DataError(f"{path}: {name} has dtype {part.get_dtype()}; quantised models are not read")
                shapes[name], files[name] = tuple(part.get_shape()), path
    return Tensors(shapes, files)


def files_of(directory: Path) -> Sequence[Path]:
    """The safetensors files: one, or those that the index names."""
    index = directory / INDEX
    if (directory / FILE).is_file():
        return [directory / FILE]
    if not index.is_file():
        pickled = next(iter(sorted(directory.glob("*.bin"))), None)
        also = f"; {pickled.name} is a pickle, which is not read: save the model as safetensors" if pickled else ""
        raise DataError(f"{directory} has neither {FILE} nor {INDEX}{also}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{index} is damaged: {error!r}; fetch it again") from error
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise DataError(f"{directory} lacks {', '.join(missing)}, which {INDEX} names; fetch the files again")
    return [directory / name for name in names]


def is_buffer(part: Any) -> bool:
    """Whether it is a mask or a counter, as old files hold beside the parameters."""
    return part.get_dtype() in ("BOOL", "U8", "I32", "I64")


@contextlib.contextmanager
def opened(path: Path) -> Any:
    """The open file, for numpy. Raises DataError naming it when it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch it again") from error
