"""Digests of files' content, remembered while the files stay as they are, since large ones take minutes to read."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from assay.data import cache
from assay.data.progress import Progress
from assay.errors import DataError

RACY_SECONDS = 2.0  # a file may change again within the resolution of its time stamp
CHUNK = 1 << 22


def content_digest(paths: Sequence[Path]) -> str:
    """Hex digest of the files' content in this order; their names and places do not matter.

    Raises DataError when one cannot be read, and when one is empty.
    """
    key = _state(paths)
    if key is None:
        return _read(paths)
    return (cache.entry("contents", key, lambda d: _remember(d, paths)) / "digest.txt").read_text()


def _state(paths: Sequence[Path]) -> str | None:
    """What changes when a file does, as far as its folder shows; None when one has changed just now."""
    facts: list[str | int] = []
    newest = 0.0
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
        if found.st_size == 0:
            raise DataError(f"{path} is empty; leave it out, or fill it")
        newest = max(newest, found.st_mtime, found.st_ctime)
        facts += [str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return None if time.time() - newest < RACY_SECONDS else cache.digest("contents", *facts)


def _remember(directory: Path, paths: Sequence[Path]) -> None:
    (directory / "digest.txt").write_text(_read(paths))


def _read(paths: Sequence[Path]) -> str:
    found: list[bytes] = []
    with Progress("reading files for their digest", "bytes") as progress:
        for path in paths:
            one = hashlib.blake2b(digest_size=20)
            try:
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        one.update(chunk)
                        progress(len(chunk))
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
            found.append(one.digest())
    return cache.digest(*found)
