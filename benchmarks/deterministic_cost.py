"""What does `experiment.deterministic` cost, and does it hold? Trains one experiment with it and without, in turns, in new processes.

    python benchmarks/deterministic_cost.py                                      # the language model of `make demo`
    python benchmarks/deterministic_cost.py --experiment experiments/gpt2_124m.gin --steps 40     # on a GPU

The time of a step is the median of what the run logged after its first dispatches. All runs with it must end with the same digest of
every array of the state. On CPU the flags that it sets have no effect; the figure there is the noise of the machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from assay.checkpoint.checkpoints import Checkpoints
from assay.runs import open_run, read_metrics

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "lm_code.gin"


def trained(root: Path, experiment: Path, steps: int, deterministic: bool) -> tuple[float, dict[str, int]]:
    """(seconds per step, digests of the final state) of one run."""
    settings = {
        "experiment.deterministic": deterministic,
        "experiment.steps": steps,
        "experiment.evaluate_every": 0,
        "experiment.evaluate_splits": "[]",
        "experiment.checkpoint_every": 0,
        "experiment.keep_best": "None",
        "experiment.sample_every": 0,
        "experiment.log_every": 1,
        "experiment.trackers": "[]",
        "schedule.cosine.warmup_steps": 5,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "assay.cli", "run", str(experiment), *sets]
    done = subprocess.run(command, env=os.environ | {"ASSAY_RUNS": str(root)}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    run = open_run("latest", root)
    seconds = [row["seconds_per_step"] for row in read_metrics(run.metrics) if row["context"] == "throughput"]
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    try:
        return statistics.median(seconds), checkpoints.extra(steps)["digests"]
    finally:
        checkpoints.close()


def main() -> int:
    """Train in turns; 0 when all deterministic runs end alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ratios: list[float] = []
    ends: dict[bool, list[dict[str, int]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="deterministic-") as name:
        for i in range(args.rounds):
            seconds = {}
            for kind in (True, False) if i % 2 else (False, True):
                seconds[kind], end = trained(Path(name), args.experiment, args.steps, kind)
                ends[kind].append(end)
            ratios.append(seconds[True] / seconds[False])
            print(f"  deterministic {seconds[True]:.4f} s a step, else {seconds[False]:.4f} s", flush=True)
    alike = {kind: sum(end == found[0] for end in found) for kind, found in ends.items()}
    print(f"  without it {alike[False]} of {args.rounds} runs ended alike")
    print(f"result: deterministic_cost {statistics.median(ratios):.3f} x the step time (no target)")
    print(f"result: deterministic_identical {alike[True]} of {args.rounds} runs (target {args.rounds})")
    return 0 if alike[True] == args.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
