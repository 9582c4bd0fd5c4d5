"""A disk cache addressed by content: an entry's key names everything that decides what is in it, so it never grows stale.

An entry is a directory. It is built beside its place, under a lock that the operating system frees when its holder dies, and
renamed once it is whole; so there is never half an entry, and two processes that want the same one build it once. The cache is
`ASSAY_CACHE_DIR`, or the user's cache directory; all of it may be deleted at any time that nothing runs.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from assay.errors import DataError

MANIFEST = "entry.json"


def root() -> Path:
    """The cache directory, which need not exist yet."""
    value = os.environ.get("ASSAY_CACHE_DIR")
    if value:
        return Path(value).expanduser().absolute()
    import platformdirs  # like filelock below: what needs no cache runs without it

    return Path(platformdirs.user_cache_dir("assay"))


def digest(*parts: str | int | float | bytes | None) -> str:
    """Hex digest of `parts`, in order; different parts never give the same input."""
    found = hashlib.blake2b(digest_size=20)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(data))
        found.update(data)
    return found.hexdigest()


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory of entry `key` (a digest) among those of its `kind`; `build` fills an empty directory when there is none.

    An entry whose files do not have the sizes that were written is built again. What `build` raises passes through, and leaves
    nothing behind. Raises DataError when the cache cannot be written.
    """
    place = root() / kind / key
    if _is_whole(place):
        return place
    with _reporting_disk(place), _locked(place):
        if not _is_whole(place):
            _build(place, build)
    return place


def _is_whole(place: Path) -> bool:
    try:
        sizes = json.loads((place / MANIFEST).read_text())
        return all((place / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _build(place: Path, build: Callable[[Path], None]) -> None:
    """Build beside the place, then rename. The lock is held, so what lies there was left by a process that died."""
    unfinished = place.with_name(place.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(unfinished)): path.stat().st_size for path in files}
        (unfinished / MANIFEST).write_text(json.dumps(sizes))
        for path in [*files, unfinished / MANIFEST]:
            _synced(path)
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _synced(path: Path) -> None:
    """Wait until the file is on disk: a rename may otherwise survive a power failure that its content did not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    import filelock

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place.with_name(place.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting for another process that prepares {place}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _reporting_disk(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the data cache at {place}: {error}; make room, or set ASSAY_CACHE_DIR to a folder that can be written"
        ) from error
