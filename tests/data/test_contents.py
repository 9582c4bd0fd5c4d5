"""Digests of files: by content and order, remembered only while nothing has changed."""

import os
from pathlib import Path

import pytest

from assay.data import contents
from assay.data.contents import content_digest
from assay.errors import DataError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("ASSAY_CACHE_DIR", str(tmp_path / "cache"))
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text(path.name)
    return paths


def test_content_and_order_decide(files: list[Path], tmp_path: Path) -> None:
    found = content_digest(files)
    (tmp_path / "other").mkdir()
    copies = [path.rename(tmp_path / "other" / f"x{i}") for i, path in enumerate(files)]
    assert content_digest(copies) == found
    assert content_digest(copies[::-1]) != found
    copies[0].write_text("A.txt")
    assert content_digest(copies) != found


def test_a_digest_is_remembered_until_a_file_changes(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "RACY_SECONDS", 0.0)
    found = content_digest(files)
    with monkeypatch.context() as patch:
        patch.setattr(contents, "_read", lambda paths: pytest.fail("read again"))
        assert content_digest(files) == found
    files[0].write_text("A.txt")
    os.utime(files[0], ns=(1, 1))
    assert content_digest(files) != found


def test_a_file_changed_just_now_is_read_each_time(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert contents.RACY_SECONDS >= 1
    monkeypatch.setattr(contents, "RACY_SECONDS", 3600.0)
    content_digest(files)
    assert not (tmp_path / "cache").exists()


def test_missing_and_empty_files_are_named(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.txt: No such file"):
        content_digest([*files, tmp_path / "no.txt"])
    files[1].write_text("")
    with pytest.raises(DataError, match=r"b\.txt is empty"):
        content_digest(files)
