"""UTF-8 bytes as tokens: nothing to train, and any text can be encoded."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from assay.errors import DataError

SEPARATOR = 0xFF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes:
    """A vocabulary of 256: each byte of the text in UTF-8 is its own id; 255, which UTF-8 never uses, separates documents."""

    def fit(self, texts: Iterable[str]) -> "ByteEncoder":
        """The encoder; the texts are not read."""
        return ByteEncoder()

    def identity(self) -> str:
        """There are no settings."""
        return "bytes"

    def restore(self, directory: Path) -> "ByteEncoder":
        """The encoder; there is nothing to read."""
        return ByteEncoder()

    def save(self, encoder: "ByteEncoder", directory: Path) -> None:
        """Nothing: the encoder has no state."""


@dataclasses.dataclass(frozen=True)
class ByteEncoder:
    """Text to UTF-8 bytes and back."""

    vocab_size: int = 256
    separator_id: int = SEPARATOR
    fingerprint: str = "bytes-1"

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """The bytes of `text`. Raises DataError for a lone surrogate, which no UTF-8 can hold."""
        try:
            return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)
        except UnicodeEncodeError as error:
            raise DataError(
                f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 "
                "cannot hold; remove it from the text"
            ) from error

    def decode(self, ids: Int[np.ndarray, " tokens"]) -> str:
        """The text; bytes that are not UTF-8, as a model may sample them, become U+FFFD."""
        kept = np.asarray(ids)[np.asarray(ids) != SEPARATOR]
        return kept.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def token_bytes(self) -> Int32[np.ndarray, " vocab"]:
        """One for each id but the separator."""
        return (np.arange(self.vocab_size) != SEPARATOR).astype(np.int32)
