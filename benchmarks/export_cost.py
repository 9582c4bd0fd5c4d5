"""What does it cost to export a model of 129M parameters? Seconds and peak memory of `assay export` for each format, the gate with them.

    python benchmarks/export_cost.py

One step of experiments/gpt2_124m.gin is trained in fp32, with two layers more (the tokenizer finds fewer words in the standard library).
Then its checkpoint is exported, each format in a command of its own, which restores it, traces and writes the programs, and compares them
with the live model in another process. The memory is the largest sum over all processes of the command of their proportional set sizes
(each shared page counted once), looked at every 50 ms; what the command holds for a model of two thousand parameters is shown beside it:
jax itself, the compiler, the loader. Sequences are bounded by --length: the gate's time is that of the model, and 512 rows of 1024 tokens,
each computed by both sides, are 270 TFLOP.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from assay.runs import open_run
from assay.runs.directory import RunDirectory

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "gpt2_124m.gin"
LAYERS = "model.transformer.layers=14"
SETTINGS = ("compute_dtype=float32", "steps=1", "batch_size=1", "accumulation=1", "evaluate_every=0", "trackers=[]")
SMALL = (
    "model.transformer.layers=1",
    "model.transformer.width=4",
    "model.transformer.heads=1",
    "dataset.python_stdlib.context=32",
)
SECONDS, RATIO = 60.0, 2.5
INTERVAL = 0.05


def environment() -> dict[str, str]:
    """The caller's, on the CPU."""
    return os.environ | {"JAX_PLATFORMS": "cpu"}


def trained(root: Path, *settings: str) -> RunDirectory:
    """A run of one step with nothing evaluated, which then says that it evaluates as the experiment does."""
    words = [
        w
        for s in [
            "schedule.cosine.warmup_steps=0",
            *(f"experiment.{s}" for s in SETTINGS),
            "experiment.evaluate_splits=[]",
            "experiment.keep_best=None",
            *(settings or [LAYERS]),
        ]
        for w in ("--set", s)
    ]
    subprocess.run(
        [sys.executable, "-m", "assay.cli", "run", EXPERIMENT, "--root", root, *words], env=environment(), check=True
    )
    run = open_run("latest", root)
    text = (run.path / "config.gin").read_text()
    assert "experiment.evaluate_splits = []" in text
    run.write(
        "config.gin", text.replace("experiment.evaluate_splits = []", "experiment.evaluate_splits = ('validation',)")
    )
    return run


def exported(run: RunDirectory, out: Path, *words: str) -> tuple[float, int]:
    """(seconds, peak bytes) of the command and all its processes. Raises SystemExit where it fails."""
    command = [sys.executable, "-m", "assay.cli", "export", str(run.path), "--out", str(out), *words]
    begun, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment(), stdout=said, stderr=subprocess.STDOUT, text=True)
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, sum(map(held, [root, *children(root)])))
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - begun
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{text}")
    print(text, flush=True)
    return seconds, peak


def children(process: psutil.Process) -> list[psutil.Process]:
    """All that descend from it now."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def held(process: psutil.Process) -> int:
    """Its proportional set size, in bytes; 0 when it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def main() -> int:
    """Train, export in each format, compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", nargs="+", default=["stablehlo", "onnx", "hf"], help="formats (default: all)")
    parser.add_argument("--length", type=int, default=128, help="longest sequence (default: 128)")
    parser.add_argument("--run", type=Path, help="a run that this script has made, to be used again")
    parser.add_argument("--keep", type=Path, help="where to make the runs (default: they are removed)")
    args = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="export-cost-") as name:
        folder = Path(name)
        run = open_run(args.run) if args.run else trained((args.keep or folder) / "runs")
        small = trained(folder / "small", *SMALL)
        for to in args.to:
            words = ["--to", to, "--max-length", str(args.length), "--max-batch", "4", "--examples", "1"]
            _, base = exported(
                small, folder / f"small-{to}", *words[:2], "--max-length", "8", "--max-batch", "1", "--examples", "1"
            )
            seconds, peak = exported(run, folder / to, *words)
            weights = json.loads((folder / to / "manifest.json").read_text())["weights"]["bytes"]
            print(
                f"{to}: {peak / 2**20:.0f} MiB at most; {base / 2**20:.0f} MiB for a tiny model; weights {weights / 2**20:.0f} MiB"
            )
            print(f"result: export_seconds_{to} {seconds:.1f} s (target <= {SECONDS:.0f})")
            print(f"result: export_peak_memory_{to} {peak / weights:.2f} x weights (target <= {RATIO})")
            print(
                f"result: export_peak_memory_beyond_jax_{to} {(peak - base) / weights:.2f} x weights (target <= {RATIO})"
            )
            good &= seconds <= SECONDS and peak <= RATIO * weights
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
