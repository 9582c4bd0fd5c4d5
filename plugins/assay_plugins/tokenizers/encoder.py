"""Encoders of the `tokenizers` library, as the core sees them."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int, Int32

from assay.data import cache
from assay.errors import DataError

CHUNK_CHARACTERS = 1 << 16
GROUP = 256  # parts encoded at once
_CUT = re.compile("[A-Za-z](?= [A-Za-z])")
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def _forbid_parallelism() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


# A forked child has none of the library's threads and would wait for them; told nothing, the library prints a warning at each fork.
os.register_at_fork(after_in_child=_forbid_parallelism)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@dataclasses.dataclass(frozen=True, eq=False)
class LibraryEncoder:
    """A `tokenizers.Tokenizer` and the id that separates documents. Picklable.

    divisible: whether its words begin at a space before a letter, so that long texts may be cut there and encoded in parallel.
    """

    tokenizer: tokenizers.Tokenizer
    vocab_size: int
    separator_id: int | None
    divisible: bool

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the tokenizer's own file format and the separator."""
        return cache.digest("tokenizers", self.tokenizer.to_str(), self.separator_id)

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """The ids of `text`, without special tokens at its ends. Raises DataError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
        """The ids of each text; equal to one `encode` for each, on all cores."""
        parts = [self._parts(text) for text in texts]
        encoded = self._encoded([part for pieces in parts for part in pieces])
        return [np.concatenate([next(encoded) for _ in pieces]) for pieces in parts]

    def decode(self, ids: Int[np.ndarray, " tokens"]) -> str:
        """The text of `ids`; the separator decodes to nothing, bytes that are not UTF-8 to U+FFFD."""
        kept = [int(i) for i in np.asarray(ids) if i != self.separator_id]
        return self.tokenizer.decode(kept, skip_special_tokens=False)

    def token_bytes(self) -> Int32[np.ndarray, " vocab"]:
        """The bytes of text that each id stands for. Raises DataError for a tokenizer whose tokens are not pieces of the text."""
        added = self.tokenizer.get_added_tokens_decoder()
        length = _length_rule(json.loads(self.tokenizer.to_str())["decoder"])
        found = np.zeros(self.vocab_size, np.int32)
        for token, i in self.tokenizer.get_vocab(with_added_tokens=True).items():
            if i in added:
                found[i] = 0 if added[i].special else len(added[i].content.encode())
            else:
                found[i] = length(token)
        if self.separator_id is not None:
            found[self.separator_id] = 0
        return found

    def _encoded(self, parts: Sequence[str]) -> Iterator[np.ndarray]:
        """The ids of each part. In groups: the library's own result takes a hundred bytes and more for each token."""
        for start in range(0, len(parts), GROUP):
            try:
                found = self.tokenizer.encode_batch_fast(parts[start : start + GROUP], add_special_tokens=False)
            except (UnicodeEncodeError, TypeError) as error:
                raise DataError(
                    f"a text cannot be encoded; lone surrogates have no UTF-8 form, remove them ({error})"
                ) from error
            for encoding in found:
                yield np.asarray(encoding.ids, np.int32)

    def _parts(self, text: str) -> list[str]:
        """`text` in pieces whose encodings, joined, are that of `text`."""
        parts: list[str] = []
        start = 0
        while self.divisible and (cut := _CUT.search(text, start + CHUNK_CHARACTERS)):
            parts.append(text[start : cut.end()])
            start = cut.end()
        return [*parts, text[start:]]


def _length_rule(decoder: Any) -> Any:
    """token -> number of bytes, by the kind of decoder."""
    written = json.dumps(decoder)
    if '"ByteLevel"' in written:
        return len  # such a token has one character for each byte
    if "\\u2581" in written:
        return _metaspace_length
    raise DataError(
        "the bytes of this tokenizer's tokens are not known (its decoder is neither byte-level nor of SentencePiece's kind); "
        "leave out metrics per byte"
    )


def _metaspace_length(token: str) -> int:
    return 1 if _BYTE_TOKEN.fullmatch(token) else len(token.replace("\u2581", " ").encode())
