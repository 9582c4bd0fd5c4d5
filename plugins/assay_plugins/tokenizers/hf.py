"""A tokenizer that somebody else trained, from its tokenizer.json."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import tokenizers

from assay.data import cache
from assay.errors import DataError, did_you_mean
from assay_plugins.tokenizers.encoder import LibraryEncoder

FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFTokenizer:
    """The tokenizer of a `tokenizer.json` file of Hugging Face's `tokenizers` library.

    path: the file, or the folder that holds it. separator: the token put between documents, such as "<|endoftext|>"; None for none.
    """

    path: str
    separator: str | None = None

    def fit(self, texts: Iterable[str]) -> LibraryEncoder:
        """The encoder; the texts are not read. Raises DataError for a file that is missing or no tokenizer."""
        return self._load(self._file())

    def identity(self) -> str:
        """The file's content and the separator; where the file lies does not matter."""
        try:
            return f"hf {cache.digest(self._file().read_bytes())} separator={self.separator!r}"
        except OSError as error:
            raise DataError(f"cannot read the tokenizer {self._file()}: {error.strerror}; give its path") from error

    def restore(self, directory: Path) -> LibraryEncoder:
        """The encoder of a saved tokenizer.json."""
        return self._load(directory / FILE)

    def save(self, encoder: LibraryEncoder, directory: Path) -> None:
        """Write tokenizer.json."""
        encoder.tokenizer.save(str(directory / FILE))

    def _file(self) -> Path:
        path = Path(self.path).expanduser()
        return path / FILE if path.is_dir() else path

    def _load(self, path: Path) -> LibraryEncoder:
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"cannot load the tokenizer {path}: {error}; give a tokenizer.json") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
        return LibraryEncoder(tokenizer, vocab_size=size, separator_id=self._separator_id(tokenizer), divisible=False)

    def _separator_id(self, tokenizer: tokenizers.Tokenizer) -> int | None:
        if self.separator is None:
            return None
        found = tokenizer.token_to_id(self.separator)
        if found is None:
            special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
            raise DataError(
                f"the tokenizer {self.path} has no token '{self.separator}'; its added tokens are "
                f"{', '.join(special) or 'none'}.{did_you_mean(self.separator, special)}"
            )
        return found
