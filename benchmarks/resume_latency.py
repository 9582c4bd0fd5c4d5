"""Does resuming take longer the further a run has come? Resumes real runs from an early and from a late checkpoint, in turns.

    python benchmarks/resume_latency.py

Two runs of one small language model (packed documents, every step logged) are trained for 200 and for 100,000 steps, and then each is
resumed for five steps more, as often as there are rounds: `assay resume` on a copy of the run. The time is that of the whole process.
The baseline is what a loader without random access does: the batches before the checkpoint are read again. The iterator's state is
measured in the checkpoints themselves.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from assay.checkpoint.checkpoints import Checkpoints
from assay.runs import open_run, read_metrics
from assay.runs.directory import RunDirectory

GIN = """
experiment.model = @model.transformer()
model.transformer.layers = 1
model.transformer.width = 16
model.transformer.heads = 2
experiment.dataset = @dataset.python_stdlib()
dataset.python_stdlib.tokenizer = @tokenizer.bytes()
dataset.python_stdlib.max_bytes = 300_000
dataset.python_stdlib.context = 16
dataset.python_stdlib.packing = 'documents'
experiment.objective = @objective.next_token()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-3
experiment.parallelism = @parallelism.data_parallel()
experiment.trackers = []
experiment.steps = {steps}
experiment.batch_size = 4
experiment.log_every = 1
experiment.evaluate_splits = []
"""
EARLY, LATE, MORE = 200, 100_000, 5
RATIO, STATE_BYTES = 1.1, 4096


def assay(root: Path, *words: str) -> float:
    """Run one command line on the runs below `root`; its seconds. Raises SystemExit with what it said when it fails."""
    environment = os.environ | {"ASSAY_RUNS": str(root), "ASSAY_CACHE_DIR": str(root.parent / "cache")}
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "assay.cli", *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"assay {' '.join(words)} failed:\n{done.stderr}")
    return time.perf_counter() - begun


def trained(folder: Path, steps: int) -> RunDirectory:
    """A run of so many steps, whose experiment then says that there are MORE."""
    gin = folder / f"small-{steps}.gin"
    gin.write_text(GIN.format(steps=steps))
    seconds = assay(folder / f"runs-{steps}", "run", str(gin))
    run = open_run("latest", folder / f"runs-{steps}")
    for name in ("config.gin", "operative.gin"):
        text = (run.path / name).read_text()
        run.write(name, text.replace(f"experiment.steps = {steps}", f"experiment.steps = {steps + MORE}"))
    size = run.metrics.stat().st_size / 2**20
    print(f"{steps} steps in {seconds:.0f} s; the log has {size:.1f} MiB", flush=True)
    return run


def resumed(run: RunDirectory, steps: int, folder: Path) -> float:
    """Seconds of `assay resume` for a copy of `run`, which must log MORE steps."""
    root = folder / "resumed"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(run.path, root / run.id)
    seconds = assay(root, "resume", run.id)
    logged = [row["step"] for row in read_metrics(root / run.id / "metrics.jsonl") if row["context"] == "train"]
    assert logged == list(range(1, steps + MORE + 1)), "the log has a gap or a repeat"
    return seconds


def read_again(run: RunDirectory, batches: int) -> float:
    """Seconds to read `batches` of the run's data from the beginning, and throw them away."""
    from assay.plan.plan import make_plan
    from assay.train.feed import training_batches
    from assay.train.launch import recorded

    iterator = training_batches(make_plan(recorded(run).experiment))
    begun = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    iterator.close()
    return time.perf_counter() - begun


def state_bytes(run: RunDirectory, step: int) -> int:
    """Bytes of the iterator's state in a checkpoint, as JSON."""
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    try:
        return len(json.dumps(checkpoints.extra(step)["iterator"]))
    finally:
        checkpoints.close()


def main() -> int:
    """Train both runs, resume them in turns, compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resume-latency-") as name:
        folder = Path(name)
        early, late = trained(folder, EARLY), trained(folder, LATE)
        resumed(early, EARLY, folder), resumed(late, LATE, folder)  # compiled programs are kept from here on
        ratios = []
        for _ in range(args.rounds):
            first, last = resumed(early, EARLY, folder), resumed(late, LATE, folder)
            ratios.append(last / first)
            print(f"  from step {EARLY}: {first:.2f} s, from step {LATE}: {last:.2f} s", flush=True)
        os.environ["ASSAY_CACHE_DIR"] = str(folder / "cache")
        print(f"  reading {LATE} batches again would take {read_again(late, LATE):.1f} s more")
        size = max(state_bytes(early, EARLY), state_bytes(late, LATE))
    ratio = statistics.median(ratios)
    print(f"result: resume_latency_late_to_early {ratio:.3f} x (target <= {RATIO})")
    print(f"result: iterator_state_bytes {size} bytes (target <= {STATE_BYTES})")
    return 0 if ratio <= RATIO and size <= STATE_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
