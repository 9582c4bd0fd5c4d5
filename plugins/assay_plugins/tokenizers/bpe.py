"""Byte-level byte-pair encoding, trained on the dataset's own text (Sennrich et al. 2016; on bytes, as in GPT-2)."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from assay.data.progress import Progress
from assay_plugins.tokenizers.encoder import LibraryEncoder

BYTES = 256
FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BPE:
    """Any text can be encoded and comes back exactly. Words are divided as in GPT-2 before pairs are merged.

    vocab_size: ids at most: 256 bytes, the merges, and one that separates documents. Small texts may give fewer merges.
    min_frequency: a pair seen less often is not merged.
    """

    vocab_size: int
    min_frequency: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError for a vocabulary without room for all bytes and the separator."""
        if self.vocab_size <= BYTES:
            raise ValueError(
                f"vocab_size = {self.vocab_size}: must be at least {BYTES + 1} ({BYTES} bytes and a separator)"
            )
        if self.min_frequency < 1:
            raise ValueError(f"min_frequency = {self.min_frequency}: must be at least 1")

    def fit(self, texts: Iterable[str]) -> LibraryEncoder:
        """Learn the merges from `texts`; the same texts give the same merges."""
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1,
            min_frequency=self.min_frequency,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_watched(texts), trainer)
        return _encoder(tokenizer)

    def identity(self) -> str:
        """The recipe and its settings."""
        return f"bpe vocab_size={self.vocab_size} min_frequency={self.min_frequency}"

    def restore(self, directory: Path) -> LibraryEncoder:
        """The encoder of a saved tokenizer.json."""
        return _encoder(tokenizers.Tokenizer.from_file(str(directory / FILE)))

    def save(self, encoder: LibraryEncoder, directory: Path) -> None:
        """Write tokenizer.json, which other tools read too. The separator is not in it: it is the id after the last."""
        encoder.tokenizer.save(str(directory / FILE))


def _encoder(tokenizer: tokenizers.Tokenizer) -> LibraryEncoder:
    """The separator is no token of the library's, so that no text can contain it."""
    size = tokenizer.get_vocab_size()
    return LibraryEncoder(tokenizer, vocab_size=size + 1, separator_id=size, divisible=True)


def _watched(texts: Iterable[str]) -> Iterator[str]:
    with Progress("training the tokenizer", "characters") as progress:
        for text in texts:
            yield text
            progress(len(text))
