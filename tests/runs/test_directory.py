"""The run directory: unique, found again, atomic, and with one writer."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from assay import runs
from assay.errors import RunError
from assay.runs.directory import FORMAT, RunDirectory

HOLDER = """
import sys
from assay import runs
with runs.open_run(sys.argv[1]).session():
    print("held", flush=True)
    sys.stdin.read()
"""
UPDATER = """
import sys
from assay import runs
run = runs.open_run(sys.argv[1])
print("going", flush=True)
for i in range(10**9):
    run.update(filler=[i] * 2000)
"""


def spawn(code: str, run: RunDirectory) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_simultaneous_runs_differ(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: runs.create(tmp_path, "same").path, range(64)))
    assert len(set(made)) == 64


def test_a_collision_takes_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter(["aa", "aa", "bb"])
    monkeypatch.setattr("assay.runs.directory.secrets.token_hex", lambda n: next(ends) if n == 2 else "temporary")

    class Frozen:
        UTC = __import__("datetime").UTC
        datetime = type(
            "d", (), {"now": staticmethod(lambda zone: __import__("datetime").datetime(2026, 1, 1, tzinfo=zone))}
        )

    monkeypatch.setattr("assay.runs.directory.datetime", Frozen)
    assert [runs.create(tmp_path, "x").id[-2:] for _ in range(2)] == ["aa", "bb"]


def test_ids_sort_by_time_and_are_plain_names(tmp_path: Path) -> None:
    made = []
    for name in ("zeta", "alpha/../x y", "mid"):
        made.append(runs.create(tmp_path, name))
        time.sleep(0.002)
    assert sorted(run.id for run in made) == [run.id for run in made]
    assert all(run.path.parent == tmp_path for run in made)
    assert runs.open_run("latest", tmp_path).id == made[-1].id


def test_the_record_keeps_what_it_was_given(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", parent="p", steps=3, config={"x": float("inf")})
    run.update(mesh={"data": 8})
    record = run.record()
    assert (record["format"], record["id"], record["name"], record["parent"]) == (FORMAT, run.id, "a", "p")
    assert (record["steps"], record["config"], record["mesh"]) == (3, {"x": "Infinity"}, {"data": 8})


def test_runs_are_found_by_path_id_and_part(tmp_path: Path) -> None:
    first, second = runs.create(tmp_path, "first"), runs.create(tmp_path, "second")
    for which in (
        first.path,
        str(first.path),
        first.id,
        "first",
        first.id[:-1] if first.id[:-1] not in second.id else "first",
    ):
        assert runs.open_run(which, tmp_path).id == first.id
    with pytest.raises(RunError, match="part of 2 runs"):
        runs.open_run(first.id[:8], tmp_path)
    with pytest.raises(RunError, match=f"Did you mean '{first.id}'"):
        runs.open_run(first.id.replace("first", "fxrst"), tmp_path)
    with pytest.raises(RunError, match=r"no run 'latest'.*There are no runs"):
        runs.open_run("latest", tmp_path / "empty")


def test_another_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a")
    run.update(format=FORMAT + 1)
    with pytest.raises(RunError, match=f"has run format {FORMAT + 1}, and this Assay reads format {FORMAT}"):
        runs.open_run(run.id, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_record_is_an_error(tmp_path: Path, text: str) -> None:
    run = runs.create(tmp_path, "a")
    (run.path / "run.json").write_text(text)
    with pytest.raises(RunError, match="damaged"):
        runs.open_run(run.path)


def test_sessions_are_recorded(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a")
    assert run.status() == "new"
    with run.session(mesh={"data": 2}) as session:
        assert run.status() == "running"
        session.exit, session.step = "interrupted", 7
    assert run.status() == "interrupted"
    with pytest.raises(ValueError, match="bad"), run.session():
        raise ValueError("bad")
    assert run.status() == "failed: ValueError: bad"
    with pytest.raises(KeyboardInterrupt), run.session():
        raise KeyboardInterrupt
    with run.session():
        pass
    sessions = run.record()["sessions"]
    assert [s["exit"] for s in sessions] == ["interrupted", "failed: ValueError: bad", "interrupted", "completed"]
    assert sessions[0]["step"] == 7
    assert sessions[0]["mesh"] == {"data": 2}
    assert all(s["start"] <= s["end"] for s in sessions)


def test_one_process_trains_at_a_time(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a")
    with spawn(HOLDER, run) as process:
        assert run.is_training()
        with pytest.raises(RunError, match=f"in use by another process \\(id {process.pid}\\)"), run.session():
            raise AssertionError("two writers")
        os.kill(process.pid, signal.SIGKILL)
    assert run.status() == "died"
    with run.session():
        assert run.is_training()
    assert not run.is_training()


def test_a_kill_never_leaves_half_a_record(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a")
    for delay in (0.0, 0.01, 0.033):
        with spawn(UPDATER, run) as process:
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        filler = run.record().get("filler", [])
        assert filler == filler[:1] * len(filler)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create(tmp_path, "a")
    before = (run.path / "run.json").read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        run.update(steps=3)
    assert (run.path / "run.json").read_text() == before
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_root_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make a run directory"):
        runs.create(tmp_path / "file", "a")


def test_the_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_RUNS", str(tmp_path))
    assert runs.default_root() == tmp_path
    monkeypatch.delenv("ASSAY_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs.default_root() == tmp_path / "runs"


def test_the_log_has_times(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a")
    run.log("first")
    run.log("second")
    assert [line.split(" ", 1)[1] for line in (run.path / "log.txt").read_text().splitlines()] == ["first", "second"]


def test_the_record_is_json_with_one_newline_at_its_end(tmp_path: Path) -> None:
    text = (runs.create(tmp_path, "a").path / "run.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["sessions"] == []
