"""Weights in one file beside the graphs that share it, as ONNX's external data."""

import dataclasses
import mmap
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

FILE = "weights.data"
ALIGNED = 4096
"""Bytes; onnxruntime maps tensors that begin at multiples of it."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights in a file. shapes: path -> (shape, dtype that programs take); stored: path -> (dtype in the file, offset, bytes)."""

    file: Path
    shapes: Mapping[str, tuple[tuple[int, ...], str]]
    stored: Mapping[str, tuple[str, int, int]]

    def arrays(self) -> dict[str, np.ndarray]:
        """Path -> array as programs take it; memory-mapped where the file has it so."""
        if not self.stored:
            return {}
        with self.file.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.file.stat().st_size else b""
        found = {}
        for path, (dtype, offset, size) in self.stored.items():
            shape, taken = self.shapes[path]
            raw = np.frombuffer(content, jnp.dtype(dtype), size // jnp.dtype(dtype).itemsize, offset)
            found[path] = raw.reshape(shape).astype(jnp.dtype(taken), copy=False)
        return found


def write(weights: Mapping[str, np.ndarray], directory: Path, *, computed: str, kept: str) -> Weights:
    """Write them one by one: floating point ones in dtype `kept`, of which programs see `computed`."""
    shapes, stored = {}, {}
    with (directory / FILE).open("wb") as file:
        for path in weights:
            array = np.asarray(weights[path])
            floating = jnp.issubdtype(array.dtype, jnp.floating)
            array = np.ascontiguousarray(array.astype(jnp.dtype(kept)) if floating else array)
            file.write(b"\0" * (-file.tell() % ALIGNED))
            stored[path] = (array.dtype.name, file.tell(), array.nbytes)
            shapes[path] = (tuple(weights[path].shape), computed if floating else array.dtype.name)
            file.write(array.tobytes())
    return Weights(directory / FILE, shapes, stored)
