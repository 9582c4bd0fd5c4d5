"""What all text datasets share: a corpus, a tokenizer and a shape give examples for next-token prediction."""

import abc
import dataclasses
import functools
from typing import Literal

from assay.data import cache
from assay.data.corpus import Corpus, checked_split
from assay.data.packing import PackedDocuments
from assay.data.spec import ArraySpec, DataSpec, Encoder
from assay.data.tokens import Tokens, fitted, tokenised
from assay.data.windows import Windows
from assay.errors import DataError
from assay.kinds import Source, Tokenizer

Packing = Literal["stream", "documents"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDataset(abc.ABC):
    """Base of text datasets; a subclass says where its documents come from.

    Examples are `inputs` and `targets`, int32 (context,): each target is the token after its input, or -1 where nothing is to be
    predicted.

    tokenizer: fitted to the training documents only. context: tokens in one example.
    packing: "stream" joins all documents, the tokenizer's separator (where it has one) between them, and cuts windows. Training
        windows start at every `stride` tokens; the other splits are cut side by side, so that every token of the split but the first
        is a target exactly once. "documents" packs whole documents into rows and adds `segment_ids` and `positions`, int32
        (context,), in which 0 is padding, and the place within the document's piece: attention must not cross segments. In every
        split every token is then a target exactly once, each document's end too (without a separator: but for each document's first).
    stride: between the starts of training windows; None for 1. Of no use with "documents".
    """

    tokenizer: Tokenizer
    context: int
    packing: Packing = "stream"
    stride: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a shape that cannot be."""
        if self.context < 1:
            raise ValueError(f"context = {self.context}: must be at least 1")
        if self.stride is not None and (self.stride < 1 or self.packing == "documents"):
            raise ValueError(f"stride = {self.stride}: must be at least 1, and None where packing = 'documents'")

    @abc.abstractmethod
    def corpus(self) -> Corpus:
        """The documents by split. Called once; may read files. Raises DataError when there is nothing to read."""

    def spec(self) -> DataSpec:
        """The examples' arrays and the fitted encoder; tokenizers that learn are trained here, the first time."""
        names = ["inputs", "targets"] + ["segment_ids", "positions"] * (self.packing == "documents")
        return DataSpec(
            elements={name: ArraySpec((self.context,), "int32") for name in names},
            vocab_size=self._encoder.vocab_size,
            units_per_example=self.context,
            unit="tokens",
            encoder=self._encoder,
        )

    def source(self, split: str) -> Source:
        """The examples of a split, tokenised the first time. Raises DataError when it is too short for one example."""
        checked_split(split, self._corpus.splits)
        tokens = tokenised(self._corpus, split, self._encoder)
        source = self._source(tokens, training=split == "train")
        if not len(source):
            raise DataError(
                f"split '{split}' has {len(tokens.stream)} tokens, too few for one example of context {self.context} "
                f"({self.context + 1} tokens in training, else 2); lower the context or give the split more text"
            )
        return source

    def fingerprint(self) -> str:
        """Digest of the documents, their division, the tokenizer and the shape of the examples."""
        return cache.digest(
            self._corpus.fingerprint(), self.tokenizer.identity(), self.context, self.packing, self.stride or 1
        )

    def _source(self, tokens: Tokens, *, training: bool) -> Source:
        if self.packing == "documents":
            return PackedDocuments(tokens, self.context)
        if training:
            return Windows(tokens, self.context, self.stride or 1, ragged=False)
        return Windows(tokens, self.context, self.context, ragged=True)

    @functools.cached_property
    def _corpus(self) -> Corpus:
        return self.corpus()

    @functools.cached_property
    def _encoder(self) -> Encoder:
        return fitted(self.tokenizer, self._corpus)
