"""Characters as tokens: the sorted set of the characters of the training text."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from assay.data import cache
from assay.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Char:
    """One id for each character (Unicode code point) of the training text, in the order of the code points.

    extra: characters to include even if the training text lacks them. A character that is in neither cannot be encoded.
    Documents are not separated; where their borders matter, the bytes and bpe tokenizers mark them.
    """

    extra: str = ""

    def fit(self, texts: Iterable[str]) -> "CharEncoder":
        """The encoder for all characters of `texts`. Raises DataError when there are none."""
        found = set(self.extra)
        for text in texts:
            found.update(text)
        if not found:
            raise DataError("the training text has no characters to build a vocabulary from; give it some text")
        return CharEncoder("".join(sorted(found)))

    def identity(self) -> str:
        """The recipe and its setting."""
        return f"char extra={''.join(sorted(set(self.extra)))!r}"

    def restore(self, directory: Path) -> "CharEncoder":
        """The encoder of a saved alphabet."""
        return CharEncoder((directory / "alphabet.txt").read_bytes().decode("utf-8", "surrogatepass"))

    def save(self, encoder: "CharEncoder", directory: Path) -> None:
        """Write the alphabet."""
        (directory / "alphabet.txt").write_bytes(encoder.alphabet.encode("utf-8", "surrogatepass"))


@dataclasses.dataclass(frozen=True)
class CharEncoder:
    """Text to ids and back. alphabet: the characters by id, sorted."""

    alphabet: str
    separator_id: None = None

    @property
    def vocab_size(self) -> int:
        """The number of characters."""
        return len(self.alphabet)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the alphabet."""
        return cache.digest("char", self.alphabet)

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """The ids of `text`. Raises DataError naming the first character that is not in the alphabet."""
        points = _code_points(text)
        ids = np.minimum(np.searchsorted(self._points, points), self.vocab_size - 1)
        unknown = np.flatnonzero(self._points[ids] != points)
        if unknown.size:
            character = text[unknown[0]]
            raise DataError(
                f"character {character!r} (U+{ord(character):04X}), {unknown[0]} characters into the text, is not among the "
                f"{self.vocab_size} of the training text; name it in the char tokenizer's `extra`, or use @tokenizer.bytes()"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Int[np.ndarray, " tokens"]) -> str:
        """The characters of `ids`."""
        return "".join(self.alphabet[i] for i in np.asarray(ids).tolist())

    def token_bytes(self) -> Int32[np.ndarray, " vocab"]:
        """The length of each character in UTF-8."""
        return np.asarray([len(c.encode("utf-8", "surrogatepass")) for c in self.alphabet], np.int32)

    @functools.cached_property
    def _points(self) -> Int32[np.ndarray, " vocab"]:
        return _code_points(self.alphabet)


def _code_points(text: str) -> Int32[np.ndarray, " characters"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4")
