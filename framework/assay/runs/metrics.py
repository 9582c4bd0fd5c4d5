"""The store of every number that a run logs: `metrics.jsonl`, one JSON object a line for each step and context.

A line is `{"step": 20, "context": "train", "time": 1764000000.123, "loss": 2.31, …}`; the time is Unix seconds. JSON has no
NaN or infinity: they are the strings "NaN", "Infinity" and "-Infinity", which pandas turns back into numbers as `read_metrics` does.
A line that a crash left unfinished is skipped by readers and cut off before the next is written.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from assay.errors import RunError

RESERVED = ("step", "context", "time")
_BLOCK = 1 << 16


class MetricsStore:
    """Appends to the file; what `append` was given survives the death of the process, and after `sync` that of the machine."""

    def __init__(self, path: Path) -> None:
        """Open or make the file and cut off an unfinished last line. Raises RunError when it cannot be written."""
        self._path = path
        try:
            whole = _whole_size(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        if whole < path.stat().st_size:
            os.truncate(path, whole)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, made by `row`. Raises RunError when the disk does not take them."""
        data = memoryview("".join(f"{encode(row)}\n" for row in rows).encode())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """Return once everything is on disk. Raises RunError when it cannot be."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"cannot write {self._path}: {error}; make room or mend its permissions, then resume the run")


def row(step: int, context: str, time: float, values: Mapping[str, float]) -> dict[str, Any]:
    """A row of the store. No value may be named like one of its own columns."""
    assert values.keys().isdisjoint(RESERVED)
    return {"step": step, "context": context, "time": round(time, 3), **values}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every row, in the order written, values as floats; an unfinished last line is left out. No file, no rows.

    Raises RunError when a line is not JSON.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [_decode(line, path, number) for number, line in enumerate(file, 1) if line.endswith(b"\n")]


def read_backwards(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """The last rows first, within about `limit` bytes of the file's end. Raises RunError as `read_metrics` does."""
    return (_decode(line, path, None) for _, line in _lines_backwards(path, limit))


def truncate_after(path: Path, step: int) -> int:
    """Drop the rows of later steps than `step`, so that a run resumed from there leaves no row twice. Returns how many.

    Steps never fall from row to row, so only what is dropped is read: resuming takes as long late in a run as early. Raises RunError
    as `read_metrics` does.
    """
    end, dropped = None, 0
    for offset, line in _lines_backwards(path):
        if _decode(line, path, None)["step"] <= step:
            break
        end, dropped = offset, dropped + 1
    if end is not None:
        os.truncate(path, end)
    return dropped


def encode(value: Any) -> str:
    """One line of strict JSON, with the names of numbers that are not finite."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))


def finite(value: Any) -> Any:
    """The value, with floats that are not finite replaced by their names, also within mappings and sequences."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _decode(line: bytes, path: Path, number: int | None) -> dict[str, Any]:
    try:
        found = json.loads(line)
        return {k: v if k in RESERVED else float(v) for k, v in found.items()}
    except (ValueError, AttributeError) as error:
        place = path if number is None else f"{path}:{number}"
        raise RunError(f"{place}: a damaged line, {line[:60]!r}; delete it") from error


def _lines_backwards(path: Path, limit: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(place in the file, text) of each whole line, the last first, of the last `limit` bytes or of all. No file, no lines."""
    end = _whole_size(path)
    stop, rest = 0 if limit is None else max(0, end - limit), b""
    if not end:
        return
    with path.open("rb") as file:
        while end > stop:
            start = max(stop, end - _BLOCK)
            file.seek(start)
            data = file.read(end - start) + rest
            first, *lines = data.split(b"\n")[:-1]  # the data ends with a newline
            place = start + len(data)
            for line in reversed(lines):
                place -= len(line) + 1
                yield place, line
            rest, end = first + b"\n", start
    if stop == 0:
        yield 0, rest[:-1]


def _whole_size(path: Path) -> int:
    """The size of the file up to its last newline; 0 where there is no file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
