"""Runs that are told to stop, run out of time, or are killed, in real processes: exit codes, what is saved, and that they go on."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from assay.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from assay.runs import open_run, read_metrics

GIN = """
experiment.model = @model.transformer()
model.transformer.layers = 1
model.transformer.width = 16
model.transformer.heads = 2
experiment.dataset = @dataset.text_files()
dataset.text_files.files = '{text}'
dataset.text_files.tokenizer = @tokenizer.char()
dataset.text_files.context = 16
experiment.objective = @objective.next_token()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-2
experiment.parallelism = @parallelism.data_parallel()
experiment.trackers = []
experiment.steps = 100000
experiment.batch_size = 8
experiment.steps_per_dispatch = 5
experiment.log_every = 5
experiment.evaluate_every = 0
experiment.checkpoint_every = 50
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "corpus.txt").write_text("".join(f"line {i} of the corpus, plainly\n" for i in range(300)))
    (tmp_path / "small.gin").write_text(GIN.format(text=tmp_path / "corpus.txt"))
    return tmp_path


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    environment = os.environ | {"XLA_FLAGS": flags, "ASSAY_RUNS": str(place / "runs")}
    command = [sys.executable, "-m", "assay.cli", *words]
    return subprocess.Popen(
        command, env=environment, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(process, found) -> None:
    deadline = time.monotonic() + 200
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def has_checkpoint(place: Path) -> bool:
    return any(p.name.isdigit() for p in place.glob("runs/*/checkpoints/*"))


def in_session(place: Path) -> bool:
    return any(json.loads(p.read_text())["sessions"] for p in place.glob("runs/*/run.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_exit_code_asks_to_be_started_again(place, number):
    process = start(place, "run", "small.gin")
    until(process, lambda: has_checkpoint(place))
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == EXIT_REQUEUE, err
    assert number.name in err
    run = open_run("latest", place / "runs")
    assert run.status() == "interrupted"
    stopped = int(out.split("stopped at step ")[1].split(",")[0])
    assert stopped == max(int(p.name) for p in run.checkpoints.iterdir() if p.name.isdigit())
    assert [row["step"] for row in read_metrics(run.metrics) if row["context"] == "train"][-1] == stopped


def test_the_time_limit_saves_and_the_run_goes_on_in_several_sessions(place):
    for limit in (4.0, 8.0, 16.0, 32.0):  # a session that makes no step in so many seconds has nothing to go on from
        process = start(place, "run", "small.gin", "--set", f"experiment.time_limit={limit}")
        _, err = process.communicate(timeout=200)
        assert process.returncode == EXIT_REQUEUE, err
        run = open_run("latest", place / "runs")
        first = run.record()["sessions"][-1]["step"]
        if first is not None:
            break
    for config in ("config.gin", "operative.gin"):  # to restore takes longer than to begin
        text = (run.path / config).read_text()
        (run.path / config).write_text(text.replace(f"time_limit = {limit}", f"time_limit = {2 * limit}"))
    again = start(place, "resume", "latest")
    _, err = again.communicate(timeout=200)
    assert again.returncode == EXIT_REQUEUE, err
    sessions = run.record()["sessions"]
    assert len(sessions) == 2
    assert sessions[-1]["step"] > first > 0
    steps = [row["step"] for row in read_metrics(run.metrics) if row["context"] == "train"]
    assert steps == list(range(5, sessions[-1]["step"] + 1, 5))


def test_before_the_first_step_a_signal_ends_the_session_at_once_and_the_run_can_go_on(place):
    process = start(place, "run", "small.gin")
    until(process, lambda: in_session(place))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == EXIT_REQUEUE, err
    assert "at once" in err
    run = open_run("latest", place / "runs")
    assert run.status() == "interrupted"
    assert not has_checkpoint(place)
    again = start(place, "resume", "latest")
    until(again, lambda: has_checkpoint(place))
    again.kill()
    again.communicate()


def test_a_second_signal_ends_at_once_and_leaves_everything_whole(place):
    process = start(place, "run", "small.gin")
    until(process, lambda: has_checkpoint(place))
    process.send_signal(signal.SIGSTOP)  # so that both are there before the step ends
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=100)
    assert process.returncode in (EXIT_INTERRUPTED, EXIT_REQUEUE), err
    assert "at once" in err
    assert open_run("latest", place / "runs").status() == "interrupted"
    again = start(place, "resume", "latest")
    until(again, lambda: len(open_run("latest", place / "runs").record()["sessions"]) == 2)
    time.sleep(1)
    again.kill()
    again.communicate()
    read_metrics(open_run("latest", place / "runs").metrics)


def test_a_run_killed_after_its_last_checkpoint_is_completed_by_resume(place):
    process = start(place, "run", "small.gin", "--set", "experiment.steps=20")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    run = open_run("latest", place / "runs")
    sessions = run.record()["sessions"]
    run.update(sessions=[sessions[0] | {"exit": None, "end": None}])
    assert run.status() == "died"
    again = start(place, "resume", "latest")
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert run.status() == "completed"
    final = start(place, "resume", "latest")
    _, err = final.communicate(timeout=200)
    assert final.returncode == 1
    assert "is complete" in err


@pytest.mark.slow
def test_a_sample_of_the_kill_sweep(tmp_path):
    file = Path(__file__).parents[2] / "benchmarks" / "kill_sweep.py"
    spec = importlib.util.spec_from_file_location("kill_sweep", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.GIN = module.GIN.replace(
        "max_bytes = 300_000", "max_bytes = 120_000"
    )  # most of the time went into evaluating
    found = module.sweep(4, tmp_path, seed=1, kills=2)
    assert not found["failed"]
    assert sum(found["kills"].values()) >= 4
