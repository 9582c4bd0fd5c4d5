"""From documents to a memory-mapped array of token ids, kept in the cache: encoding happens once for each text and tokenizer."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from assay.data import cache
from assay.data.corpus import Corpus
from assay.data.progress import Progress
from assay.data.spec import Encoder
from assay.errors import DataError
from assay.kinds import Tokenizer

GROUP_CHARACTERS = 1 << 20  # documents are encoded in groups of about this size
LAYOUT = 1  # of a cache entry; part of its key


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The token ids of one split on disk. Picklable: a copy in another process maps the same file.

    With a separator s the documents d lie as `s d s d s`, else as `d d`. ids: uint16, or uint32 for vocabularies above 65,536.
    """

    directory: Path
    dtype: str
    separated: bool

    @functools.cached_property
    def ids(self) -> Shaped[np.ndarray, " tokens"]:
        """All ids with their separators, mapped and read-only."""
        return _mapped(self.directory / "ids.bin", self.dtype)

    @functools.cached_property
    def starts(self) -> Int64[np.ndarray, " documents+1"]:
        """Where each document's first token lies in `ids`; at the end, where one more document would lie."""
        return _mapped(self.directory / "starts.bin", "int64")

    @property
    def stream(self) -> Shaped[np.ndarray, " tokens"]:
        """All documents with the separator, where there is one, between them."""
        return self.ids[1:-1] if self.separated else self.ids

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def fitted(tokenizer: Tokenizer, corpus: Corpus) -> Encoder:
    """The encoder that `tokenizer` gives for the training documents, which are the only ones it sees; kept in the cache."""

    def build(directory: Path) -> None:
        tokenizer.save(tokenizer.fit(corpus.documents("train")), directory)

    return tokenizer.restore(cache.entry("tokenizers", cache.digest(tokenizer.identity(), corpus.fingerprint()), build))


def tokenised(corpus: Corpus, split: str, encoder: Encoder) -> Tokens:
    """The ids of the documents of `split`, from the cache, or encoded now. Raises DataError where a document cannot be encoded."""
    dtype = "uint16" if encoder.vocab_size <= 1 << 16 else "uint32"
    key = cache.digest("tokens", LAYOUT, corpus.fingerprint(), split, encoder.fingerprint)

    def build(directory: Path) -> None:
        with Progress(f"tokenising {split}", "characters") as progress:
            _write(directory, _encoded(corpus, split, encoder, progress), encoder.separator_id, dtype)

    return Tokens(cache.entry("tokens", key, build), dtype, encoder.separator_id is not None)


def encode_batch(encoder: Encoder, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text. An encoder may have `encode_batch(texts)`, which must equal one `encode` for each; it is then used."""
    batch = getattr(encoder, "encode_batch", None)
    return list(batch(texts)) if batch is not None else [encoder.encode(text) for text in texts]


def _write(directory: Path, documents: Iterable[np.ndarray], separator_id: int | None, dtype: str) -> None:
    separator = np.asarray([] if separator_id is None else [separator_id], dtype)
    place = len(separator)
    starts = [place]
    with (directory / "ids.bin").open("wb") as file:
        file.write(separator.tobytes())
        for ids in documents:
            file.write(ids.astype(dtype).tobytes() + separator.tobytes())
            place += len(ids) + len(separator)
            starts.append(place)
    np.asarray(starts, np.int64).tofile(directory / "starts.bin")


def _encoded(corpus: Corpus, split: str, encoder: Encoder, progress: Progress) -> Iterator[np.ndarray]:
    """The ids of each document of the split."""
    done = 0
    for group in _groups(corpus.documents(split)):
        try:
            yield from encode_batch(encoder, group)
        except DataError as error:
            which = (
                f"document {done + 1}" if len(group) == 1 else f"one of the documents {done + 1} to {done + len(group)}"
            )
            raise DataError(f"{which} of split '{split}': {error}") from error
        done += len(group)
        progress(sum(map(len, group)))


def _groups(documents: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _mapped(path: Path, dtype: str) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))
