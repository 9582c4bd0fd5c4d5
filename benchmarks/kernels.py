"""Our kernels and their rivals on the same inputs, in one process, in turns: memory that the compiler takes, and time.

    python benchmarks/kernels.py                                     # every op, on the device that is there
    python benchmarks/kernels.py linear_cross_entropy --shape gpt2 --json kernels.json

Each op's `bench` module says what is run. Memory is the temporary memory of the compiled program (`memory_analysis`), without arguments
and gradients. Time is the median over the rounds of one call, after one that is not counted; a ratio is the median of the rounds' ratios.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from assay_kernels import current_target

OPS = ("linear_cross_entropy",)


def measured(op: str, bench: ModuleType, name: str, rounds: int) -> dict[str, Any]:
    """One shape of an op: what each contender needs, and the ratios to the rival."""
    shape = bench.SHAPES[name]
    programs: dict[str, Any] = {k: jax.jit(f).lower(*shape.abstract()).compile() for k, f in bench.contenders().items()}
    row: dict[str, Any] = {"op": op, "shape": name, "target": str(current_target()), "jax": jax.__version__}
    row["temp_bytes"] = {k: p.memory_analysis().temp_size_in_bytes for k, p in programs.items()}
    if shape.timed:
        row["seconds"] = times(programs, shape.arguments(), rounds)
    return row


def times(programs: dict[str, Any], arguments: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each program in every round; the order turns with the rounds."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(rounds + 1):
        for name in list(programs)[:: -1 if i % 2 else 1]:
            began = time.perf_counter()
            jax.block_until_ready(programs[name](*arguments))
            if i:
                found[name].append(time.perf_counter() - began)
    return found


def report(row: dict[str, Any], bench: ModuleType) -> bool:
    """Print a row; whether its targets are met."""
    shape, name = bench.SHAPES[row["shape"]], f"{row['op']}_{row['shape']}"
    for kind, size in row["temp_bytes"].items():
        spread = sorted(row.get("seconds", {}).get(kind, []))
        timing = f"{statistics.median(spread):9.4f} s ({spread[0]:.4f} to {spread[-1]:.4f})" if spread else ""
        rate = f"  {shape.flops / statistics.median(spread) / 1e9:8.1f} GFLOP/s" if spread else ""
        print(f"  {name} {kind:12s} {size / 2**20:9.1f} MiB  {timing}{rate}")
    saved = row["temp_bytes"][bench.RIVAL] / row["temp_bytes"][bench.SMALLEST]
    goal = shape.memory_target
    print(
        f"result: {name}_memory {saved:.2f} x less temp memory, {bench.SMALLEST} ({'no target' if goal is None else f'target >= {goal}'})"
    )
    if spread:
        pairs = zip(row["seconds"][bench.FASTEST], row["seconds"][bench.RIVAL], strict=True)
        print(
            f"result: {name}_time {statistics.median(a / b for a, b in pairs):.3f} x the rival's time, {bench.FASTEST} (no target)"
        )
    return goal is None or saved >= goal


def main() -> int:
    """Run what is asked for; 0 when every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="*", help=f"of {', '.join(OPS)}; all without")
    parser.add_argument("--shape", action="append", help="a shape of the op's bench module; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    args = parser.parse_args()
    rows, met = [], True
    for op in args.op or OPS:
        bench = importlib.import_module(f"assay_kernels.{op}.bench")
        for name in args.shape or bench.SHAPES:
            rows.append(measured(op, bench, name, args.rounds))
            met &= report(rows[-1], bench)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
