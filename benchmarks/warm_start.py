"""How much of a start does the persistent compilation cache save? Starts real runs with an empty cache and with a full one, in turns.

    python benchmarks/warm_start.py

A start is the time from the beginning of the process `assay run` to its first logged step. In each round every experiment starts twice:
with a new folder for compiled programs, and again with what the first start left there. Data is tokenised, and Python's byte code is
compiled, before. The losses of both starts must be the same bits.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from assay.runs import read_metrics
from assay.runs.directory import run_directories

TARGET = 0.3
EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SETTINGS: dict[str, tuple[str, Sequence[str]]] = {
    "lm_code": ("lm_code.gin", ()),
    "12_layers": ("lm_code.gin", ("model.transformer.layers=12",)),
}
QUIET = ("experiment.trackers=[]", "experiment.log_every=1", "experiment.steps_per_dispatch=2", "experiment.steps=1000")
PATIENCE = 600.0


def start(folder: Path, compiled: Path, experiment: str, overrides: Sequence[str]) -> tuple[float, float]:
    """(seconds from the start of a new process to its first logged step, that step's loss). The process is killed then."""
    root = Path(tempfile.mkdtemp(dir=folder, prefix="runs-"))
    environment = os.environ | {"ASSAY_RUNS": str(root), "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    sets = [word for override in (*QUIET, *overrides) for word in ("--set", override)]
    command = [sys.executable, "-m", "assay.cli", "run", str(EXPERIMENTS / experiment), *sets]
    begun = time.time()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while True:
            rows = [row for run in run_directories(root) for row in read_metrics(run.metrics)]
            if rows:
                return rows[0]["time"] - begun, rows[0]["loss"]
            if process.poll() is not None or time.time() - begun > PATIENCE:
                raise SystemExit(f"no first step: {process.communicate()[1] if process.poll() is not None else 'hung'}")
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()


def main() -> int:
    """Start each experiment cold and warm in each round; 0 when every median ratio is within the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=sorted(SETTINGS), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    held = True
    with tempfile.TemporaryDirectory(prefix="warm-start-") as name:
        folder = Path(name)
        for setting in args.setting or SETTINGS:
            experiment, overrides = SETTINGS[setting]
            start(folder, folder / f"first-{setting}", experiment, overrides)  # tokenises, not counted
            ratios = []
            for i in range(args.rounds):
                compiled = folder / f"compiled-{setting}-{i}"
                (cold, loss), (warm, again) = [start(folder, compiled, experiment, overrides) for _ in range(2)]
                assert loss == again, f"another loss with kept programs: {loss}, {again}"
                ratios.append(warm / cold)
                print(f"  {setting}: cold {cold:.1f} s, warm {warm:.1f} s; load {os.getloadavg()[0]:.1f}", flush=True)
            median = statistics.median(ratios)
            held &= median <= TARGET
            print(f"result: warm_start_{setting} {median:.3f} of a cold start (target <= {TARGET})", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
