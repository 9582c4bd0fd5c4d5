"""What `objective.next_token.fused_head` changes in training: the step's time and its temporary memory, with it and without, in turns.

    python benchmarks/fused_head.py                                              # the language model of `make demo`
    python benchmarks/fused_head.py --experiment experiments/gpt2_124m.gin --set experiment.batch_size=8 --set experiment.accumulation=1

One process; a dispatch is compiled each way from the same experiment and run on the same batch, in turns, after one that is not
counted. The two losses of the first step are compared as well.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from assay import config
from assay.plan.plan import Plan, make_plan
from assay.train import begin
from assay.train.feed import stack, to_devices, training_batches

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "lm_code.gin"


class Side:
    """One way to train: its program, its state, and the seconds of each of its steps."""

    def __init__(self, plan: Plan) -> None:
        self.steps, self.seconds = plan.steps_per_dispatch, list[float]()
        self.program: Any = plan.compiled()
        self.state: Any = begin.drawn(plan)
        batches = training_batches(plan)
        host = stack([next(batches) for _ in range(self.steps)])
        batches.close()
        self.batch = to_devices(plan.layout, host, stacked=True)
        self.losses: list[float] = []

    @property
    def megabytes(self) -> float:
        """Temporary memory of the program."""
        return self.program.memory_analysis().temp_size_in_bytes / 2**20

    def dispatch(self, count: bool) -> None:
        """Train on for one dispatch."""
        began = time.perf_counter()
        self.state, metrics = self.program(self.state, self.batch)
        losses = np.asarray(metrics["loss"])
        if count:
            self.seconds.append((time.perf_counter() - began) / self.steps)
        self.losses.extend(losses.tolist())


def main() -> int:
    """Train in turns and print the ratios; 0 when the first losses agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, as of `assay run`")
    parser.add_argument(
        "--impl", action="append", default=[], help="as the option's values; default 'auto' and 'blocked'"
    )
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    args.impl = args.impl or ["auto", "blocked"]
    sides: dict[str | None, Side] = {}
    for fused in (None, *args.impl):
        loaded = config.load(args.experiment, [*args.set, f"objective.next_token.fused_head={fused!r}"])
        sides[fused] = Side(make_plan(loaded.experiment, loaded.where, jax.devices()[:1]))
    for i in range(args.rounds + 1):
        for fused in list(sides)[:: -1 if i % 2 else 1]:
            sides[fused].dispatch(i > 0)
    for fused, side in sides.items():
        times = f"{min(side.seconds):.4f} to {max(side.seconds):.4f}"
        print(
            f"  fused_head = {fused!r}: {statistics.median(side.seconds):.4f} s a step ({times}), {side.megabytes:.1f} MiB"
        )
    plain = sides.pop(None)
    agree = [compared(f"{args.experiment.stem}_{impl}", side, plain) for impl, side in sides.items()]
    return 0 if all(agree) else 1


def compared(name: str, side: Side, plain: Side) -> bool:
    """Print what differs; whether the first losses agree."""
    ratios = [a / b for a, b in zip(side.seconds, plain.seconds, strict=True)]
    apart = abs(side.losses[0] / plain.losses[0] - 1)
    print(f"result: fused_head_{name}_time {statistics.median(ratios):.3f} x the step without it (no target)")
    print(f"result: fused_head_{name}_memory {plain.megabytes / side.megabytes:.2f} x less temp memory (no target)")
    print(f"result: fused_head_{name}_loss {apart:.1e} relative, first step (target <= 1e-6)")
    return apart <= 1e-6


if __name__ == "__main__":
    sys.exit(main())
