"""Several processes: what is wrong with how they are told to meet is said before they try, and alone everything is free."""

import subprocess
import sys

import jax
import pytest

from assay.errors import LayoutError
from assay.parallel import processes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("localhost:1", None, None), "need --coordinator, --processes and --process together"),
        ((None, 2, 0), "need --coordinator, --processes and --process together"),
        (("localhost", 2, 0), "must be HOST:PORT"),
        (("localhost:x", 2, 0), "must be HOST:PORT"),
        (("localhost:1", 2, 2), "--process 2: must be from 0 to 1"),
        (("localhost:1", 2, -1), "--process -1: must be from 0 to 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(LayoutError, match=words):
        processes.initialize(*arguments)


def test_the_command_line_says_so_before_anything_runs(tmp_path):
    (tmp_path / "x.gin").write_text("")
    command = [sys.executable, "-m", "assay.cli", "run", "x.gin", "--processes", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_processes_that_do_not_meet_are_an_error_in_words(monkeypatch):
    def fails(*arguments, **named):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(LayoutError, match=r"did not meet: DEADLINE_EXCEEDED.*is the coordinator's address in reach"):
        processes.initialize("localhost:1", 2, 1)


def test_one_process_shares_and_agrees_with_itself():
    assert processes.is_first()
    assert processes.shared_text("täxt") == "täxt"
    processes.barrier("alone")
    agreement = processes.Agreement(jax.devices())
    assert [agreement.any(agreement.ask(flag)) for flag in (True, False)] == [True, False]
