"""Texts, images and figures of a run, one file each: `samples/00000200-sample_0.txt`, `.png` or `.plotly.json`.

The name is percent-encoded where a file system would not take it ("validation/errors" becomes "validation%2Ferrors").
"""

import importlib
import io
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from assay.runs.files import write_bytes_atomically
from assay.track.entries import Figure, Image, Text

_FILE = re.compile(r"(\d+)-(.+?)\.(txt|png|plotly\.json)")


def write_media(directory: Path, entry: Text | Image | Figure) -> Path:
    """Write the entry's file, replacing one of the same step and name, and return it. Raises OSError when the disk does not take it."""
    directory.mkdir(exist_ok=True)
    match entry:
        case Text():
            suffix, data = "txt", entry.value.encode()
        case Image():
            suffix, data = "png", _png(entry.value)
        case Figure():
            suffix, data = "plotly.json", entry.value.to_json().encode()
    name = urllib.parse.quote(entry.name, safe=" ")
    path = directory / f"{entry.step:08d}-{name}.{suffix}"
    write_bytes_atomically(path, data)
    return path


def read_media(directory: Path) -> Iterator[Text | Image | Figure]:
    """Every entry by step and name. Figures need plotly; without it they are left out."""
    for step, name, path in _files(directory):
        if path.suffix == ".txt":
            yield Text(step, name, path.read_bytes().decode())
        elif path.suffix == ".png":
            yield Image(step, name, _pixels(path))
        elif (figure := _plotly(path.read_text())) is not None:
            yield Figure(step, name, figure)


def remove_media_after(directory: Path, step: int) -> None:
    """Remove the files of later steps than `step`."""
    for found, _, path in _files(directory):
        if found > step:
            path.unlink()


def rendered(step: int, name: str, value: Any) -> Image | Figure:
    """A plotly figure as it is; a matplotlib figure as an image, since matplotlib must not draw in two threads at once."""
    if hasattr(value, "to_json"):
        return Figure(step, name, value)
    buffer = io.BytesIO()
    value.savefig(buffer, format="png")
    return Image(step, name, _pixels(buffer))


def _files(directory: Path) -> list[tuple[int, str, Path]]:
    """Step, name and path of each, sorted."""
    found = [(_FILE.fullmatch(path.name), path) for path in directory.glob("*")]
    return sorted((int(m[1]), urllib.parse.unquote(m[2]), path) for m, path in found if m)


def _png(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(value[..., 0] if value.shape[-1] == 1 else value).save(buffer, format="png")
    return buffer.getvalue()


def _pixels(file: Path | io.BytesIO) -> np.ndarray:
    """uint8 (height, width, 1 or 3)."""
    with PillowImage.open(file) as image:
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _plotly(text: str) -> Any:
    try:
        return importlib.import_module("plotly.io").from_json(text)
    except ModuleNotFoundError:
        return None
