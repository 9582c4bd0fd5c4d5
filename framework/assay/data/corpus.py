"""Text as documents by split, before any tokenizer has seen it, and how files become documents."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from assay.errors import DataError, did_you_mean


class Corpus(Protocol):
    """Documents by split. Documents are read anew at each call, so that no corpus need fit into memory."""

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits; "train" is one of them."""

    def documents(self, split: str) -> Iterator[str]:
        """The documents of one of `splits`, in a fixed order. Raises DataError when one cannot be read."""

    def fingerprint(self) -> str:
        """Hex digest of the documents, their order and their division into splits."""


def checked_split(split: str, splits: Iterable[str]) -> str:
    """`split`, when it is one of `splits`. Raises DataError naming those there are."""
    known = list(splits)
    if split not in known:
        raise DataError(f"there is no split '{split}'; there are {', '.join(known)}.{did_you_mean(split, known)}")
    return split


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises DataError when it cannot be read or is empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
    if not content:
        raise DataError(f"{path} is empty; remove it from the files, or fill it")
    return content


def decode_utf8(content: bytes, path: Path) -> str:
    """The text of a file's `content`. Raises DataError with the place of the first byte that is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} ({error.reason}); "
            "convert it (iconv -t UTF-8), or leave it out"
        ) from error


def fraction_of(key: str, salt: str) -> float:
    """A number in [0, 1) drawn by hashing `key`: the same on every machine, whatever other documents there are."""
    found = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=salt.encode())
    return int.from_bytes(found.digest(), "big") / 2**64


def checked_fraction(name: str, value: float) -> None:
    """Raise ValueError when a validation fraction is not within (0, 1)."""
    if not 0 < value < 1:
        raise ValueError(f"{name} = {value}: must be between 0 and 1")
