"""ArrayRecord files: what is written comes back; broken files are named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from assay.data.pipeline import train_batches
from assay.errors import DataError
from assay.kinds import Dataset
from assay_plugins.datasets.array_record import ArrayRecord, pack, unpack, write_array_record

ARRAYS = hnp.arrays(
    st.sampled_from(
        [np.bool_, np.int8, np.uint16, np.int32, np.dtype(">i4"), np.int64, np.float16, np.float32, np.float64]
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(st.dictionaries(st.text(), ARRAYS))
def test_examples_come_back(example: dict[str, np.ndarray]) -> None:
    found = unpack(pack(example))
    assert list(found) == list(example)
    for name, values in example.items():
        assert found[name].dtype == values.dtype.newbyteorder("<")
        np.testing.assert_array_equal(found[name], values)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(record: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack(record)


def example(i: int) -> dict[str, np.ndarray]:
    return {"inputs": np.full((3,), i, np.int32), "weight": np.asarray(i / 2, np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert write_array_record(tmp_path / "a.array_record", map(example, range(5))) == 5
    assert write_array_record(tmp_path / "b.array_record", map(example, range(5, 12))) == 7
    assert write_array_record(str(tmp_path / "v.array_record"), map(example, range(3))) == 3
    return tmp_path


def test_contract(folder: Path) -> None:
    data = ArrayRecord(files=f"{folder}/[ab].array_record", validation_files=f"{folder}/v.array_record", vocab_size=20)
    assert isinstance(data, Dataset)
    spec = data.spec()
    assert (spec.vocab_size, spec.unit, spec.units_per_example) == (20, "tokens", 3)
    assert {n: (a.shape, a.dtype) for n, a in spec.elements.items()} == {
        "inputs": ((3,), "int32"),
        "weight": ((), "float32"),
    }
    source = data.source("train")
    source[0]
    source = pickle.loads(pickle.dumps(source))
    assert [int(source[i]["inputs"][0]) for i in range(len(source))] == list(range(12))
    assert len(data.source("validation")) == 3
    batches = train_batches(source, batch_size=4, seed=0, rows=slice(0, 4), prefetch=1, workers=0)
    assert sorted(np.concatenate([next(batches)["inputs"][:, 0] for _ in range(3)]).tolist()) == list(range(12))
    batches.close()


def test_labelled_data_without_validation(folder: Path) -> None:
    data = ArrayRecord(files=f"{folder}/a.array_record", num_classes=4)
    assert (data.spec().num_classes, data.spec().unit, data.spec().units_per_example) == (4, "examples", 1)
    with pytest.raises(DataError, match="no split 'validation'; there are train"):
        data.source("validation")


def test_the_fingerprint_changes_with_content_and_options(folder: Path) -> None:
    file = f"{folder}/a.array_record"
    before = ArrayRecord(files=file).fingerprint()
    assert ArrayRecord(files=file, num_classes=2).fingerprint() != before
    assert ArrayRecord(files=file, validation_files=file).fingerprint() != before
    write_array_record(file, map(example, range(1, 6)))
    assert ArrayRecord(files=file).fingerprint() != before


def test_a_file_appears_when_it_is_whole(folder: Path) -> None:
    def broken() -> "list[dict[str, np.ndarray]]":
        return [example(0), {"inputs": np.zeros(4, np.int32), "weight": np.float32(0)}]

    with pytest.raises(DataError, match="example 1 has the arrays"):
        write_array_record(folder / "new.array_record", broken())
    with pytest.raises(DataError, match="no examples to write"):
        write_array_record(folder / "new.array_record", [])
    with pytest.raises(DataError, match="array 'x' has dtype <U1"):
        write_array_record(folder / "new.array_record", [{"x": np.asarray("a")}])
    assert sorted(path.name for path in folder.iterdir()) == ["a.array_record", "b.array_record", "v.array_record"]


def test_bad_files_are_named(folder: Path) -> None:
    (folder / "text.array_record").write_text("no records here" * 10_000)
    with pytest.raises(DataError, match=r"text\.array_record"):
        ArrayRecord(files=f"{folder}/text.array_record").spec()
    writer = ArrayRecordWriter(str(folder / "other.array_record"), "group_size:1")
    writer.write(b"something else")
    writer.close()
    with pytest.raises(DataError, match=r"record 0 of .*other\.array_record cannot be read"):
        ArrayRecord(files=f"{folder}/other.array_record").spec()
    with pytest.raises(DataError, match="no file matches"):
        ArrayRecord(files=f"{folder}/none.array_record").spec()
    write_array_record(folder / "x.array_record", [{"x": np.zeros(1)}])
    with pytest.raises(DataError, match="no 'inputs', only x"):
        ArrayRecord(files=f"{folder}/x.array_record", vocab_size=3).spec()
