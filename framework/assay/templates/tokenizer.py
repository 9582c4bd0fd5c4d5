"""Half bytes as tokens."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from assay.errors import DataError

SEPARATOR = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """Each byte of the text in UTF-8 becomes two tokens: its higher half, 0 to 15, and 16 + its lower half; 32 separates documents."""

    def fit(self, texts: Iterable[str]) -> "Encoder":
        """The encoder; a tokenizer that learns would read the texts here."""
        return Encoder()

    def identity(self) -> str:
        """The recipe and all its settings; data that was encoded is cached under it."""
        return "my_plugin"

    def save(self, encoder: "Encoder", directory: Path) -> None:
        """Nothing: the encoder has learned nothing."""

    def restore(self, directory: Path) -> "Encoder":
        """The encoder that `save` put there."""
        return Encoder()


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Text to half bytes and back."""

    vocab_size: int = 33
    separator_id: int = SEPARATOR
    fingerprint: str = "my_plugin-1"

    def encode(self, text: str) -> np.ndarray:
        """int32 (2 x bytes,). Raises DataError for a lone surrogate, which UTF-8 cannot hold."""
        try:
            data = np.frombuffer(text.encode("utf-8"), np.uint8)
        except UnicodeEncodeError as error:
            raise DataError(f"character {error.start} of the text is a lone surrogate; remove it") from error
        return np.stack([data >> 4, 16 + data % 16], axis=-1).reshape(-1).astype(np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """The text; separators, and halves without their other half, as a model may sample them, are left out."""
        halves = np.append(np.asarray(ids)[np.asarray(ids) != SEPARATOR], 0)
        (starts,) = np.nonzero((halves[:-1] < 16) & (halves[1:] >= 16))
        data = halves[starts] * 16 + halves[starts + 1] - 16
        return bytes(np.asarray(data, np.uint8)).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token stands for, int32 (33,): a byte is counted with its lower half."""
        ids = np.arange(self.vocab_size)
        return np.asarray((ids >= 16) & (ids != SEPARATOR), np.int32)
