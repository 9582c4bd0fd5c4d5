"""Hugging Face tables, written by the library itself, without a network."""

import dataclasses
import sys
from pathlib import Path

import pytest

from assay.errors import DataError
from assay.kinds import Dataset
from assay_plugins.datasets.hf_datasets import HFDatasets
from assay_plugins.tokenizers.byte import Bytes

library = pytest.importorskip("datasets", reason="needs the extra assay[hf]")

ROWS = {"text": ["one two", "", "three"], "n": [1, 2, 3]}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)


def saved(folder: Path, rows: dict[str, list[object]] = ROWS) -> Path:  # type: ignore[assignment]
    table = library.Dataset.from_dict(rows)
    library.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder)
    return folder


def text(data: HFDatasets, split: str) -> list[str]:
    return list(data.corpus().documents(split))


def test_a_saved_folder(tmp_path: Path) -> None:
    data = HFDatasets(
        path=str(saved(tmp_path / "saved")),
        splits={"train": "train", "validation": "test"},
        tokenizer=Bytes(),
        context=3,
    )
    assert isinstance(data, Dataset)
    assert text(data, "train") == ["one two", "three"]
    assert text(data, "validation") == ["one two"]
    assert len(data.source("train")) == len("one two") + 1 + len("three") - 3
    assert bytes(data.source("validation")[0]["targets"].tolist()) == b"ne "


def test_a_saved_table_is_all_training(tmp_path: Path) -> None:
    library.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "table")
    data = HFDatasets(path=str(tmp_path / "table"), splits={"train": "train"}, tokenizer=Bytes(), context=3)
    assert text(data, "train") == ["one two", "three"]
    with pytest.raises(DataError, match="no split 'validation'; there are train"):
        data.source("validation")


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_local_files(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"rows.{kind}"
    getattr(library.Dataset.from_dict(ROWS), f"to_{kind}")(file)
    data = HFDatasets(
        path=kind,
        data_files={"train": str(file)},
        splits={"train": "train[:2]", "validation": "train[2:]"},
        tokenizer=Bytes(),
        context=3,
    )
    assert text(data, "train") == ["one two"]
    assert text(data, "validation") == ["three"]


def test_the_fingerprint_changes_with_content_and_options(tmp_path: Path) -> None:
    data = HFDatasets(path=str(saved(tmp_path / "a")), splits={"train": "train"}, tokenizer=Bytes(), context=3)
    other = str(saved(tmp_path / "b", {"text": ["four"], "n": [1]}))
    changes = [{}, {"path": other}, {"context": 2}, {"splits": {"train": "test"}}]
    assert len({dataclasses.replace(data, **change).fingerprint() for change in changes}) == 4  # type: ignore[arg-type]
    assert dataclasses.replace(data).fingerprint() == data.fingerprint()


def test_mistakes_are_named(tmp_path: Path) -> None:
    data = HFDatasets(path=str(saved(tmp_path / "saved")), splits={"train": "train"}, tokenizer=Bytes(), context=3)
    with pytest.raises(
        DataError, match=r"no column 'txt'; its columns are text, n\. Set text_field\. Did you mean 'text'"
    ):
        dataclasses.replace(data, text_field="txt").source("train")
    with pytest.raises(DataError, match=r"column 'n' of .* is not text"):
        dataclasses.replace(data, text_field="n").source("train")
    with pytest.raises(DataError, match=r"no split 'tets'; it has train, test\. Did you mean 'test'"):
        dataclasses.replace(data, splits={"train": "tets"}).source("train")
    with pytest.raises(DataError, match="cannot load split 'train' of json"):
        dataclasses.replace(data, path="json", data_files={"train": str(tmp_path / "none.json")}).source("train")
    with pytest.raises(ValueError, match="must name a split for 'train'"):
        dataclasses.replace(data, splits={"validation": "train"})


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'assay\[hf\]'"):
        HFDatasets(path="x", tokenizer=Bytes(), context=3).source("train")
