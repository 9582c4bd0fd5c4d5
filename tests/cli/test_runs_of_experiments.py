"""What a user types, from `assay run` to `assay sample`, in real processes: killed, interrupted, out of disk, given bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from assay.runs import open_run, read_metrics
from assay.runs.goodput import goodput

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
experiment.metrics = [@metric.perplexity(), @metric.bits_per_byte()]
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-2
experiment.parallelism = @parallelism.data_parallel()
experiment.trackers = []
experiment.steps = {steps}
experiment.batch_size = 8
experiment.steps_per_dispatch = 5
experiment.log_every = 5
experiment.evaluate_every = {every}
experiment.checkpoint_every = {every}
experiment.keep_checkpoints = 3
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "corpus.txt").write_text("".join(f"line {i} of the corpus, plainly\n" for i in range(300)))
    return tmp_path


def write(place: Path, steps: int = 20, every: int = 10) -> Path:
    file = place / "small.gin"
    file.write_text(GIN.format(text=place / "corpus.txt", steps=steps, every=every))
    return file


def assay(place: Path, *words: str, start: bool = False, code: int | None = 0):
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    environment = os.environ | {"XLA_FLAGS": flags, "ASSAY_RUNS": str(place / "runs")}
    command = [sys.executable, "-m", "assay.cli", *words]
    if start:
        return subprocess.Popen(
            command, env=environment, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=250)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def wait_for_step(place: Path, step: int, process) -> None:
    """Until the run has a complete checkpoint of `step` or later."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if any(int(p.name) >= step for p in place.glob("runs/*/checkpoints/*") if p.name.isdigit()):
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint in time")


def test_run_evaluate_sample_plan_and_list(place):
    begun = time.time()
    done = assay(place, "run", str(write(place)))
    seconds = time.time() - begun
    run = open_run("latest", place / "runs")
    parts = goodput(run)
    assert parts is not None
    wall = parts.pop("wall")
    assert sum(parts.values()) == pytest.approx(wall, rel=0.01)
    began = json.loads((run.path / "goodput.jsonl").read_text().splitlines()[0])["start"]
    assert abs(began - begun) < 0.15 * seconds  # that of the process: imports alone are twice as long
    assert 0.5 * seconds < wall < seconds  # what is left is the end of the interpreter
    assert min(parts[name] for name in ("startup", "compile", "step", "evaluate", "save")) > 0
    shown = assay(place, "runs", "--goodput").stdout.splitlines()
    assert run.id in shown[1]
    assert "COMPILE %" in shown[0]
    frame = pandas.read_json(run.metrics, lines=True)
    assert frame[frame.context == "train"].step.tolist() == [5, 10, 15, 20]
    assert {"config.gin", "operative.gin", "run.json", "log.txt", "checkpoints"} <= {p.name for p in run.path.iterdir()}
    record = run.record()
    assert record["data"]
    assert record["plugins"]["model.transformer"].startswith("assay ")
    assert record["sessions"][0]["mesh"] == {"data": 1}
    values = json.loads(assay(place, "evaluate", "latest", "--json").stdout)
    logged = [row for row in read_metrics(run.metrics) if row["context"] == "validation"][-1]
    assert values["validation/loss"] == pytest.approx(logged["loss"], rel=1e-6)
    assert f"{values['validation/loss']:.4f}" in done.stdout
    older = json.loads(assay(place, "evaluate", "latest", "--json", "--step", "10").stdout)
    assert older["step"] == 10
    assert older["validation/loss"] > values["validation/loss"]
    assert assay(place, "sample", "latest", "--prompt", "line ", "--length", "8").stdout.startswith("line ")
    assert "completed" in assay(place, "runs").stdout
    assert "is complete at step 20" in assay(place, "resume", "latest", code=1).stderr


def test_a_killed_run_goes_on_from_its_last_checkpoint(place):
    file = write(place, steps=4000, every=50)
    process = assay(place, "run", str(file), start=True)
    wait_for_step(place, 100, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run = open_run("latest", place / "runs")
    assert run.status() == "died"
    for config in ("config.gin", "operative.gin"):
        text = (run.path / config).read_text()
        (run.path / config).write_text(text.replace("experiment.steps = 4000", "experiment.steps = 400"))
    kept = max(int(p.name) for p in run.checkpoints.iterdir() if p.name.isdigit())
    if kept < 400:
        assay(place, "resume", "latest")
        steps = [row["step"] for row in read_metrics(run.metrics) if row["context"] == "train"]
        assert steps == list(range(5, 401, 5))  # no gap, no repeat


def test_ctrl_c_saves_and_the_resumed_run_equals_an_uninterrupted_one(place):
    process = assay(place, "run", str(write(place, steps=1500, every=100)), start=True)
    wait_for_step(place, 100, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Go on with: assay resume" in out
    assay(place, "resume", "latest")
    interrupted = [row for row in read_metrics(open_run("latest", place / "runs").metrics) if row["context"] == "train"]
    assay(place, "run", str(place / "small.gin"))
    whole = [row for row in read_metrics(open_run("latest", place / "runs").metrics) if row["context"] == "train"]
    assert [row["loss"] for row in interrupted] == [row["loss"] for row in whole]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.text_files.files=nothing/*.txt", "nothing/*.txt"),
        ("experiment.batch_size=100000", "100000"),
        ("experiment.parallelism=@parallelism.tensor()", None),
        ("parallelism.data_parallel.data=3", "needs 3 devices and there are 1"),
        ("experiment.keep_best=validation/los", "validation/loss"),
        ("experiment.evaluate_splits=['tset']", "tset"),
        ("model.transformer.heads=3", "heads"),
    ],
)
def test_bad_input_is_one_clear_error_and_no_half_run(place, override, words):
    done = assay(place, "run", str(write(place)), "--set", override, code=None if words is None else 1)
    assert "Traceback" not in done.stderr
    if words is not None:
        assert words in done.stderr


def test_an_empty_file_is_named(place):
    (place / "corpus.txt").write_text("")
    assert "corpus.txt" in assay(place, "run", str(write(place)), code=1).stderr


def test_a_run_of_another_version_is_refused(place):
    assay(place, "run", str(write(place, steps=5, every=5)))
    run = open_run("latest", place / "runs")
    run.write("run.json", json.dumps(run.record() | {"format": 99}))
    error = assay(place, "resume", run.id, code=1).stderr
    assert "format 99" in error
    assert "format 1" in error


def test_a_full_disk_leaves_the_last_good_checkpoint(place):
    small = place / "runs"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        file = write(place, steps=4000, every=10)
        file.write_text(file.read_text().replace("keep_checkpoints = 3", "keep_checkpoints = 100"))
        done = assay(place, "run", str(file), code=1)
        last = done.stderr.strip().splitlines()[-1]
        assert "room" in last or "full" in last, done.stderr
        assert "Traceback" not in done.stderr
        run = open_run("latest", small)
        complete = sorted((p for p in run.checkpoints.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        assert complete
        assay(place, "evaluate", run.id, "--step", complete[-1].name)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
