"""Examples in ArrayRecord files, the format that Grain reads at random, and the function that writes them."""

import dataclasses
import functools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from assay.data import cache
from assay.data.contents import content_digest
from assay.data.corpus import checked_split
from assay.data.files import expand
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import DataError

_LENGTH = struct.Struct("<I")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """Examples written by `write_array_record`: any named arrays of numbers, of the same shapes and dtypes in all examples.

    files, validation_files: paths or globs; without the latter there is no "validation" split.
    num_classes: for labelled data. vocab_size: for token data, whose examples then count as `inputs`' length in tokens.
    """

    files: str | Sequence[str]
    validation_files: str | Sequence[str] | None = None
    num_classes: int | None = None
    vocab_size: int | None = None

    def spec(self) -> DataSpec:
        """The arrays of the first example."""
        example = self.source("train")[0]
        elements = {name: ArraySpec(values.shape, values.dtype.name) for name, values in example.items()}
        if self.vocab_size is None:
            return DataSpec(elements, num_classes=self.num_classes)
        if "inputs" not in elements:
            raise DataError(f"vocab_size is given, but the examples have no 'inputs', only {', '.join(elements)}")
        length = int(np.prod(elements["inputs"].shape))
        return DataSpec(elements, self.vocab_size, self.num_classes, units_per_example=length, unit="tokens")

    def source(self, split: str) -> "Records":
        """The examples of a split. Raises DataError for files that are missing or no ArrayRecord."""
        return Records(tuple(str(path) for path in self._files[checked_split(split, self._files)]))

    def fingerprint(self) -> str:
        """Digest of the files' content by split, and of the options."""
        contents = [part for split, paths in self._files.items() for part in (split, content_digest(paths))]
        return cache.digest("array_record", *contents, self.num_classes, self.vocab_size)

    @functools.cached_property
    def _files(self) -> Mapping[str, Sequence[Path]]:
        validation = {} if self.validation_files is None else {"validation": expand(self.validation_files)}
        return {"train": expand(self.files), **validation}


@dataclasses.dataclass(frozen=True)
class Records:
    """A Source over the records of ArrayRecord files, in the files' order."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return unpack(self._records[index])
        except Exception as error:  # the reader raises what its C++ gives
            raise DataError(
                f"record {index} of {self._place(index)} cannot be read: {error}; write the file with write_array_record"
            ) from error

    def __reduce__(self) -> tuple[type["Records"], tuple[tuple[str, ...]]]:
        return Records, (self.paths,)  # each process opens the files itself

    @functools.cached_property
    def _records(self) -> grain.sources.ArrayRecordDataSource:
        try:
            records = grain.sources.ArrayRecordDataSource(list(self.paths))
        except Exception as error:
            raise DataError(
                f"cannot open {', '.join(self.paths)}: {error}; write the files with write_array_record"
            ) from error
        if not len(records):
            raise DataError(f"{', '.join(self.paths)}: there are no records")
        return records

    def _place(self, index: int) -> str:
        if len(self.paths) == 1:
            return self.paths[0]
        return f"the {len(self.paths)} files {self.paths[0]} … {self.paths[-1]}"


def write_array_record(path: str | Path, examples: Iterable[Mapping[str, np.ndarray]]) -> int:
    """Write `examples`, dicts of named arrays, into the ArrayRecord file `path`; return their number.

    The file appears when it is whole. Raises DataError when there are none, or shapes, dtypes or names differ between them.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    count, first = 0, None
    writer = ArrayRecordWriter(str(unfinished), "group_size:1")  # one record is one unit of reading at random
    try:
        for example in examples:
            shapes = {name: (np.shape(values), np.asarray(values).dtype) for name, values in example.items()}
            first = shapes if first is None else first
            if shapes != first:
                raise DataError(f"example {count} has the arrays {shapes}, but the first has {first}; make them equal")
            writer.write(pack(example))
            count += 1
        if not count:
            raise DataError(f"there are no examples to write into {path}")
        writer.close()
        unfinished.replace(path)
    finally:
        if writer.is_open():
            writer.close()
        unfinished.unlink(missing_ok=True)
    return count


def pack(example: Mapping[str, np.ndarray]) -> bytes:
    """One example as bytes: the length of a JSON header (uint32), the header [[name, dtype, shape], …], the arrays one after another.

    Numbers are little-endian, arrays in row-major order. No code is stored and none is run by reading.
    """
    arrays = {name: np.asarray(values) for name, values in example.items()}
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf":
            raise DataError(
                f"array '{name}' has dtype {values.dtype}; records hold bool, int, unsigned and float arrays"
            )
    arrays = {name: values.astype(values.dtype.newbyteorder("<"), copy=False) for name, values in arrays.items()}
    header = json.dumps([[name, values.dtype.str, values.shape] for name, values in arrays.items()]).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *(values.tobytes() for values in arrays.values())])


def unpack(record: bytes) -> dict[str, np.ndarray]:
    """The example that `pack` gave. Raises ValueError for other bytes."""
    if len(record) < _LENGTH.size:
        raise ValueError("not a record of examples: too short")
    place = _LENGTH.size + _LENGTH.unpack_from(record)[0]
    example = {}
    for name, dtype, shape in json.loads(record[_LENGTH.size : place]):
        count = int(np.prod(shape))
        example[name] = np.frombuffer(record, np.dtype(dtype), count, place).reshape(shape)
        place += example[name].nbytes
    if place != len(record):
        raise ValueError(f"not a record of examples: {len(record)} bytes where {place} are described")
    return example
