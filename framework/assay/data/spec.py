"""What a dataset says of its examples: shapes and dtypes, label or vocabulary size, and the tokenizer behind the ids."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape (without the batch axis) and numpy dtype name of one named array of an example."""

    shape: tuple[int, ...]
    dtype: str


@runtime_checkable
class Encoder(Protocol):
    """A trained tokenizer: text to ids and back. `decode(encode(text)) == text` for all text it can represent."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is in [0, vocab_size)."""

    @property
    def separator_id(self) -> int | None:
        """The id put between documents, or None when the tokenizer has none."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides how text is encoded."""

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32, shape (tokens,)."""

    def decode(self, ids: np.ndarray) -> str:
        """Text of `ids`, shape (tokens,); separators decode to nothing."""

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int32, shape (vocab_size,); 0 for special ids. For bits per byte."""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The static description of a dataset, known before any example is read by a model.

    elements: every array of one example, by name, without the batch axis.
    vocab_size: number of token ids, for token data. num_classes: number of labels, for labelled data.
    units_per_example: what throughput counts in one example (tokens of a text row, 1 for an image).
    unit: the name of that, "tokens" or "examples". encoder: the trained tokenizer, for text.
    examples: rows of the training split, for models whose loss depends on it; the core fills it in.
    """

    elements: Mapping[str, ArraySpec]
    vocab_size: int | None = None
    num_classes: int | None = None
    units_per_example: int = 1
    unit: str = "examples"
    encoder: Encoder | None = None
    examples: int | None = None
