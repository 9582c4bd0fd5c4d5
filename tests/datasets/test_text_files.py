"""Text files: what is found, how it is divided, and which mistakes are named."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.blocks import read
from assay.errors import DataError
from assay.kinds import Dataset
from assay_plugins.datasets.text_files import TextFiles
from assay_plugins.tokenizers.byte import Bytes
from assay_plugins.tokenizers.char import Char


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("b.txt", "second"), ("a.txt", "first, "), ("sub/c.txt", "third")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def files(patterns: "str | list[str]", **options: object) -> TextFiles:
    settings: dict[str, object] = {"tokenizer": Bytes(), "context": 2, **options}
    return TextFiles(files=patterns, **settings)  # type: ignore[arg-type]


def documents(data: TextFiles, split: str) -> list[str]:
    return list(data.corpus().documents(split))


def test_files_are_documents_in_sorted_order(folder: Path) -> None:
    data = files(f"{folder}/**/*.txt", validation_files=f"{folder}/b.txt")
    assert isinstance(data, Dataset)
    assert documents(data, "train") == ["first, ", "second", "third"]
    assert documents(data, "validation") == ["second"]
    several = files([f"{folder}/b.txt", f"{folder}/*.txt"], validation_files=f"{folder}/b.txt")
    assert documents(several, "train") == ["first, ", "second"]


def test_relative_paths_and_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "sub")
    monkeypatch.setenv("HOME", str(folder))
    for pattern in ("c.txt", "../sub/*.txt", "~/sub/c.txt"):
        assert documents(files(pattern, validation_files="c.txt"), "train") == ["third"]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("text")
    assert documents(files(f"{tmp_path}/a[1].txt", validation_files=f"{tmp_path}/a[1].txt"), "train") == ["text"]


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_position_cuts_the_joined_text(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], fraction: float
) -> None:
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = files(str(file), validation_fraction=fraction)
    train, validation = ("".join(documents(data, split)) for split in ("train", "validation"))
    joined = "".join(texts)
    assert train + validation == joined
    assert len(train) == int(len(joined) * (1 - fraction))


def test_documents_are_drawn_by_their_text(tmp_path: Path) -> None:
    texts = [f"document {i % 150}" for i in range(300)]  # each one twice
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    data = files(f"{tmp_path}/a.jsonl", split_by="document", text_field="body", validation_fraction=0.2)
    train, validation = documents(data, "train"), documents(data, "validation")
    assert sorted(train + validation) == sorted(texts)
    assert not set(train) & set(validation)
    assert 0.1 < len(validation) / 300 < 0.3
    (tmp_path / "b.jsonl").write_text(json.dumps({"body": "one more"}) + "\n")
    more = documents(dataclasses.replace(data, files=f"{tmp_path}/*.jsonl"), "validation")
    assert set(validation) <= set(more)


def test_an_installed_package() -> None:
    data = TextFiles(package="assay_plugins", tokenizer=Bytes(), context=8)
    assert any("class TextFiles(TextDataset)" in d for split in ("train", "validation") for d in documents(data, split))
    with pytest.raises(DataError, match="no installed package 'assay_plugin_s'"):
        dataclasses.replace(data, package="assay_plugin_s").source("train")


def test_tiny_shakespeare_is_divided_as_nanogpt_does(data_dir: Path) -> None:
    data = files(str(data_dir / "tinyshakespeare.txt"), tokenizer=Char(), context=64)
    assert data.spec().vocab_size == 65
    train, validation = data.source("train"), data.source("validation")
    assert len(train) == 1_003_854 - 64
    found = read(validation, np.arange(len(validation)))
    assert np.sum(found["targets"] >= 0) == 111_540 - 1
    encoder = data.spec().encoder
    assert encoder is not None
    text = (data_dir / "tinyshakespeare.txt").read_text()
    assert encoder.decode(found["targets"][found["targets"] >= 0]) == text[1_003_855:]
    window = train[777]
    assert encoder.decode(window["inputs"]) == text[777:841]
    assert encoder.decode(window["targets"]) == text[778:842]


def test_little_of_packed_wikitext_is_padding(data_dir: Path) -> None:
    data = files(
        str(data_dir / "wikitext2.valid.txt"),
        validation_files=str(data_dir / "wikitext2.test.txt"),
        packing="documents",
        context=256,
    )
    for split in ("train", "validation"):
        source = data.source(split)
        padding = np.mean(read(source, np.arange(len(source)))["segment_ids"] == 0)
        assert padding < 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"validation_fraction": 0.2},
        {"split_by": "document"},
        {"context": 3},
        {"tokenizer": Char()},
        {"packing": "documents"},
    ],
)
def test_the_fingerprint_changes_with_options(folder: Path, change: dict[str, object]) -> None:
    data = files(f"{folder}/*.txt")
    assert dataclasses.replace(data, **change).fingerprint() != data.fingerprint()  # type: ignore[arg-type]


def test_the_fingerprint_changes_with_content_and_not_with_names(folder: Path) -> None:
    before = files(f"{folder}/*.txt").fingerprint()
    (folder / "a.txt").rename(folder / "a0.txt")
    assert files(f"{folder}/*.txt").fingerprint() == before
    (folder / "a0.txt").write_text("First, ")
    assert files(f"{folder}/*.txt").fingerprint() != before
    held_out = files(f"{folder}/*.txt", validation_files=f"{folder}/b.txt").fingerprint()
    assert held_out != files(f"{folder}/*.txt", validation_files=f"{folder}/sub/c.txt").fingerprint()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"caf\xe9 ol\xe9", "a.txt", r"a\.txt is not UTF-8: byte 0xe9 at offset 3"),
        (b"", "a.txt", r"a\.txt is empty"),
        (b'{"text": "x"}\n{"text": \n', "a.jsonl", r"a\.jsonl:2 is not JSON"),
        (
            b'{"txt": "x"}\n',
            "a.jsonl",
            r"a\.jsonl:1 has no text in field 'text' \(its fields: txt\).*Did you mean 'txt'",
        ),
        (b"[1]\n", "a.jsonl", r"a\.jsonl:1 has no text"),
        (b"abc", "a.txt", r"split 'train' has 2 tokens, too few for one example of context 2 \(3 tokens"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        files(str(tmp_path / name)).source("train")


def test_bad_paths_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches '.*aa\.txt'.*Did you mean 'a\.txt'"):
        files(f"{folder}/aa.txt").source("train")
    with pytest.raises(DataError, match=r"no file matches '.*\*\.md'"):
        files([f"{folder}/*.txt", f"{folder}/*.md"]).source("train")


@pytest.mark.parametrize(
    "options", [{"validation_fraction": 0.0}, {"validation_fraction": 1.0}, {"package": "jax"}, {"files": ()}]
)
def test_impossible_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|either"):
        dataclasses.replace(files("a.txt"), **options)  # type: ignore[arg-type]
