"""Data for kits: specifications that most models can read, and batches of any specification."""

from collections.abc import Mapping

import numpy as np

from assay.data.blocks import read
from assay.data.spec import ArraySpec, DataSpec
from assay.kinds import Dataset

VOCAB, LENGTH, CLASSES = 48, 16, 8

SPECS: Mapping[str, DataSpec] = {
    "tokens": DataSpec(
        {"inputs": ArraySpec((LENGTH,), "int32"), "targets": ArraySpec((LENGTH,), "int32")},
        vocab_size=VOCAB,
        units_per_example=LENGTH,
        unit="tokens",
    ),
    "images": DataSpec(
        {"image": ArraySpec((8, 8, 1), "float32"), "label": ArraySpec((), "int32")}, num_classes=CLASSES
    ),
    "noised images": DataSpec(
        {
            "image": ArraySpec((8, 8, 1), "float32"),
            "label": ArraySpec((), "int32"),
            "noise_level": ArraySpec((), "float32"),
        },
        num_classes=CLASSES,
    ),
    "features": DataSpec(
        {"features": ArraySpec((LENGTH,), "float32"), "label": ArraySpec((), "int32")}, num_classes=CLASSES
    ),
}
"""Rows of tokens with their successors, labelled grey images, the same at a level of noise, labelled vectors; sizes divide by eight."""


def batch_of(spec: DataSpec, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """`size` rows of `spec`, drawn from `seed`, with `mask`: floats from N(0, 1), integers below the classes or the vocabulary."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, array in spec.elements.items():
        shape, dtype = (size, *array.shape), np.dtype(array.dtype)
        if dtype.kind == "f":
            arrays[name] = generator.normal(size=shape).astype(dtype)
        else:
            top = 2 if dtype.kind == "b" else spec.vocab_size or spec.num_classes or 2
            arrays[name] = generator.integers(0, top, shape).astype(dtype)
    return arrays | {"mask": np.ones(size, np.bool_)}


def rows_of(dataset: Dataset, size: int) -> dict[str, np.ndarray]:
    """The first `size` training examples, from the start again where there are fewer, with `mask`."""
    source = dataset.source("train")
    return dict(read(source, np.arange(size) % len(source))) | {"mask": np.ones(size, np.bool_)}
