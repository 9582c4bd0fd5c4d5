"""Labelled images in folders: one sub-folder for each class."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from assay.data import cache
from assay.data.contents import content_digest
from assay.data.corpus import checked_fraction, checked_split, fraction_of
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import DataError, did_you_mean

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Examples: `image`, float32 (image_size, image_size, channels), and `label`, int32 (), the place of its class' name in sorted order.

    directory: holds `train/CLASS/*.png` and so on for every split; or `CLASS/*.png`, of which validation_fraction is held out, drawn
        by a hash of the file's path.
    image_size: the shorter side is resized to it (bilinear, antialiased), then the middle is cut out.
    channels: 3 for colour, 1 for grey. mean, std: one number for each channel, or for all; pixels in [0, 1] become (pixel - mean) / std.
    """

    directory: str
    image_size: int
    channels: Literal[1, 3] = 3
    validation_fraction: float = 0.1
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        """Raise ValueError for settings that cannot be."""
        checked_fraction("validation_fraction", self.validation_fraction)
        if self.image_size < 1:
            raise ValueError(f"image_size = {self.image_size}: must be at least 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} = {values}: must be 1 number, or {self.channels}, one for each channel")
        if min(self.std) <= 0:
            raise ValueError(f"std = {self.std}: must be positive")

    def spec(self) -> DataSpec:
        """One image and its label; the classes are the names of the folders."""
        image = ArraySpec((self.image_size, self.image_size, self.channels), "float32")
        return DataSpec({"image": image, "label": ArraySpec((), "int32")}, num_classes=len(self._tree.classes))

    def source(self, split: str) -> "Images":
        """The images of a split, decoded when they are read. Raises DataError when it has none."""
        tree = self._tree
        names = tree.files[checked_split(split, tree.files)]
        if not names:
            raise DataError(
                f"split '{split}' of {self.directory} has no images; change validation_fraction or add files"
            )
        labels = [tree.classes.index(Path(name).parts[-2]) for name in names]
        scale = tuple(self.mean), tuple(self.std)
        paths = [str(tree.root / name) for name in names]
        return Images(tuple(paths), tuple(labels), self.image_size, self.channels, *scale)

    def fingerprint(self) -> str:
        """Digest of the files' paths and content and of every option."""
        tree = self._tree
        names = [f"{split}:{name}" for split, names in tree.files.items() for name in names]
        contents = content_digest([tree.root / name for names in tree.files.values() for name in names])
        shape = cache.digest(self.image_size, self.channels, *map(float, self.mean), "std", *map(float, self.std))
        return cache.digest("images", *names, contents, shape)

    @functools.cached_property
    def _tree(self) -> "Tree":
        return _found(Path(self.directory).expanduser(), self.validation_fraction)


@dataclasses.dataclass(frozen=True)
class Tree:
    """Image files by split, as paths within `root` that end in CLASS/NAME; and the classes' names, sorted."""

    root: Path
    files: Mapping[str, Sequence[str]]
    classes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Images:
    """A Source that decodes image files as they are asked for."""

    paths: Sequence[str]
    labels: Sequence[int]
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`image` and `label`. Raises DataError naming a file that is no whole image."""
        pixels = decode(Path(self.paths[index]), self.size, self.channels)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return {
            "image": (pixels - mean[None, None]) / std[None, None],
            "label": np.asarray(self.labels[index], np.int32),
        }


def decode(path: Path, size: int, channels: int) -> Float32[np.ndarray, "size size channels"]:
    """The middle square of an image file, resized, in [0, 1]. Raises DataError when the file is no whole image."""
    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that can be read: {error}; replace or remove it") from error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(resized, np.float32).reshape(size, size, channels) / np.float32(255)


def _found(root: Path, fraction: float) -> Tree:
    """Raises DataError when there are no images, or a split has a class that training lacks."""
    if not root.is_dir():
        near = did_you_mean(root.name, [path.name for path in root.parent.glob("*")])
        raise DataError(f"there is no folder {root.absolute()}.{near}")
    if (root / "train").is_dir():
        files = {split.name: _images(root, split) for split in sorted(root.iterdir()) if split.is_dir()}
    else:
        held_out = {name: fraction_of(name, "validation") < fraction for name in _images(root, root)}
        files = {
            split: [n for n, out in held_out.items() if out == (split == "validation")]
            for split in ("train", "validation")
        }
    classes = sorted({Path(name).parts[-2] for name in files["train"]})
    if not classes:
        raise DataError(
            f"{root.absolute()} has no images in CLASS/ or train/CLASS/ folders ({', '.join(sorted(SUFFIXES))})"
        )
    for split, names in files.items():
        for name in names:
            if Path(name).parts[-2] not in classes:
                raise DataError(
                    f"{root / name}: split '{split}' has a class that 'train' lacks; there are {', '.join(classes)}"
                )
    return Tree(root, files, classes)


def _images(root: Path, folder: Path) -> list[str]:
    """The image files in the class folders of `folder`, as sorted paths within `root`."""
    paths = [path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES]
    return sorted(path.relative_to(root).as_posix() for path in paths)
