"""The cache: an entry is whole or not there, whatever dies, and is built once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from assay.data import cache
from assay.errors import DataError


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASSAY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(directory: Path) -> None:
    (directory / "a.txt").write_text("hello")
    (directory / "sub").mkdir()
    (directory / "sub" / "b.bin").write_bytes(bytes(100))


def refuse(directory: Path) -> None:
    raise AssertionError("built a second time")


def test_an_entry_is_built_once() -> None:
    place = cache.entry("things", "k1", build)
    assert (place / "a.txt").read_text() == "hello"
    assert cache.entry("things", "k1", refuse) == place
    assert cache.entry("things", "k2", build) != place


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "broken manifest"])
def test_a_damaged_entry_is_built_again(damage: str) -> None:
    place = cache.entry("things", "k", build)
    match damage:
        case "truncated":
            (place / "sub" / "b.bin").write_bytes(bytes(99))
        case "missing":
            (place / "a.txt").unlink()
        case "no manifest":
            (place / cache.MANIFEST).unlink()
        case _:
            (place / cache.MANIFEST).write_text('{"a.t')
    cache.entry("things", "k", build)
    assert (place / "a.txt").read_text() == "hello"
    assert (place / "sub" / "b.bin").stat().st_size == 100


def test_a_failed_build_leaves_nothing(directory: Path) -> None:
    def fail(place: Path) -> None:
        build(place)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.entry("things", "k", fail)
    assert [path.name for path in (directory / "things").iterdir() if path.suffix != ".lock"] == []


def test_a_cache_that_cannot_be_written_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ASSAY_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set ASSAY_CACHE_DIR"):
        cache.entry("things", "k", build)


def test_a_full_disk_is_a_data_error_and_leaves_nothing(directory: Path) -> None:
    def fill(place: Path) -> None:
        (place / "a.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left on device"):
        cache.entry("things", "k", fill)
    assert not (directory / "things" / "k").exists()


BUILD = """
import sys, time
from pathlib import Path
from assay.data import cache

def build(place):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    (place / "a.txt").write_text("he")
    print("half", flush=True)
    time.sleep(float(sys.argv[2]))
    (place / "a.txt").write_text("hello")

print((cache.entry("things", "k", build) / "a.txt").read_text(), flush=True)
"""


def start(log: Path, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", BUILD, str(log), str(seconds)], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    processes = [start(tmp_path / "log", 0.3) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert all(output.endswith("hello\n") for output in outputs)
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_killed_build_leaves_no_entry_and_no_lock(tmp_path: Path, directory: Path) -> None:
    process = start(tmp_path / "log", 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (directory / "things" / "k").exists()
    place = cache.entry("things", "k", build)  # would wait for ever for a lock that is left
    assert (place / "a.txt").read_text() == "hello"
    assert sorted(path.name for path in place.parent.iterdir()) == ["k", "k.lock"]


def test_digests_keep_parts_apart() -> None:
    parts = [("a", "b"), ("ab",), ("a", b"b"), ("b", "a"), (1,), ("1",), (1.0,), (None,), (), ("",)]
    assert len({cache.digest(*p) for p in parts}) == len(parts)
