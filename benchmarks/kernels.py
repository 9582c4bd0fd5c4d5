"""Our kernels and their rivals on the same inputs, in one process, in turns: device time, share of the ceiling, and memory.

    python benchmarks/kernels.py                                     # every op, on the device that is there
    python benchmarks/kernels.py linear_cross_entropy --shape gpt2 --json kernels.json
    python benchmarks/kernels.py --memory-only                       # compile only

Each op's `bench` module (see assay_kernels.benching) says what is run. Memory is the temporary memory of the compiled program
(`memory_analysis`), without arguments and results. On a GPU time is that of the device, from calls that are chained inside one program
(see assay_kernels.timing), and the ceilings, bandwidth of a copy and rate of a bf16 product of 8192^3, are measured first; on a CPU time is
that of one call. Medians over the rounds, with their extremes; a ratio is the median of the rounds' ratios. "of ceiling" is the least time
that operations and bytes allow over the time taken.

A bar is asked of an H200 (those on memory of every device); on another device it is printed for comparison. Exit status: 0 when all that
was asked holds and no contender failed. Shapes with a bar come first. An unfinished --json file of the same versions and settings is
gone on with.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name of the same
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.7")  # torch needs some of a GPU's memory too
import jax

from assay_kernels import Target, current_target, recording, timing
from assay_kernels.benching import Bar, Shape, apart, benched

ASKED = "NVIDIA H200"  # what the bars are meant for
APART = 2e-2  # contenders' results that differ more than that, relative in norm, are pointed out; quantised ones may
VERSIONS = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cublas", "torch")
Row = dict[str, Any]


class Log:
    """What is measured, as JSON; written again whenever something is added. path: None for nowhere.

    A file that an earlier run left unfinished, with the same versions and settings, is gone on with: `done` shapes are not run again.
    """

    def __init__(self, path: Path | None, device: Target, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = {
            "complete": False,
            **settings,
            "device": device.device_kind,
            "target": str(device),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
            "ceilings": {},
            "done": [],
            "rows": [],
            "claims": [],
            "results": [],
        }
        if path and path.exists():
            self._go_on(json.loads(path.read_text(encoding="utf-8")), settings)

    def _go_on(self, earlier: dict[str, Any], settings: Mapping[str, Any]) -> None:
        same = all(earlier[key] == self.found[key] for key in ("device", "versions", *settings))
        if same and not earlier["complete"]:
            done = earlier["done"]
            self.found |= {key: earlier[key] for key in ("done", "claims", "results")}
            self.found["rows"] = [row for row in earlier["rows"] if f"{row['op']} {row['shape']}" in done]
            print(f"going on with {self.path}, which has {len(done)} shapes")

    def is_done(self, op: str, shape: str) -> bool:
        """Whether an earlier run measured it."""
        return f"{op} {shape}" in self.found["done"]

    def write(self) -> None:
        """Replace the file."""
        if self.path:
            beside = self.path.with_name(self.path.name + ".part")
            beside.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            beside.replace(self.path)

    def rows(self, op: str, shape: str) -> dict[str, Row]:
        """What was measured of a shape, by contender."""
        return {r["contender"]: r for r in self.found["rows"] if (r["op"], r["shape"]) == (op, shape)}


def versions() -> dict[str, str]:
    """Of the packages that matter, as far as they are installed."""
    found = {"platform_version": jax.devices()[0].client.platform_version.replace("\n", "; ")}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def clocks() -> str | None:
    """The GPU's driver, clocks and power as nvidia-smi gives them, just after work; None where it cannot be asked."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Measured on the device: bytes and floating point operations a second; 0 where they are not."""

    bandwidth: float = 0.0
    rate: float = 0.0

    def least_seconds(self, shape: Shape) -> float:
        """The least time that a shape can take; 0 where the ceilings are not known."""
        if not self.rate:
            return 0.0
        return max(shape.flops / self.rate, shape.bytes / self.bandwidth)


class Runner:
    """Measures shapes and adds rows to a log."""

    def __init__(self, log: Log, rounds: int, memory_only: bool) -> None:
        self.log, self.rounds, self.memory_only = log, rounds, memory_only
        self.on_gpu = current_target().platform in ("cuda", "rocm")
        self.ceilings, self.launch, self.tap = Ceilings(), 0.0, 0.0
        if self.on_gpu and not memory_only:
            self.ceilings = Ceilings(timing.copy_bandwidth(), timing.product_rate())
            self.launch, self.tap = timing.launch_seconds(), timing.tap_seconds()
            log.found["ceilings"] = dataclasses.asdict(self.ceilings) | {
                "launch_seconds": self.launch,
                "tap_seconds": self.tap,
                "clocks": clocks(),
            }
            print(
                f"ceilings: copy {self.ceilings.bandwidth / 1e12:.2f} TB/s, bf16 product {self.ceilings.rate / 1e12:.0f} TFLOP/s; "
                f"a call from Python {self.launch * 1e6:.0f} us, the tap of a chained call "
                f"{self.tap * 1e6:.1f} us, which is taken off"
            )

    def measure(self, op: str, bench: ModuleType, name: str) -> None:
        """All contenders on one shape."""
        shape: Shape = bench.SHAPES[name]
        self._first: dict[Any, tuple[str, Any]] = {}
        functions = self._tried(op, name, "contenders", lambda: bench.contenders(shape)) or {}
        programs: dict[str, Any] = {}
        with concurrent.futures.ThreadPoolExecutor(4 if self.on_gpu else 1) as pool:
            compiling: dict[str, tuple[Row, Any]] = {}
            for contender, function in functions.items():
                row = self._row(op, name, shape, contender)
                with self._failing(row):
                    with recording() as choices:
                        lowered = jax.jit(function).lower(*shape.abstract())
                    row["choices"] = [choice.as_json() for choice in choices]
                    compiling[contender] = row, pool.submit(lowered.compile)
            for contender, (row, program) in compiling.items():
                with self._failing(row):
                    programs[contender] = program.result()
                    row["temp_bytes"] = programs[contender].memory_analysis().temp_size_in_bytes
                self.log.write()
        if self.times(shape):
            self._time(op, bench, name, {k: functions[k] for k in programs}, programs)
        self._first = {}
        self.log.write()

    def times(self, shape: Shape) -> bool:
        """Whether it is run here, not only compiled."""
        return not self.memory_only and ("gpu" if self.on_gpu else "cpu") in shape.on

    def _time(self, op: str, bench: ModuleType, name: str, functions: Mapping[str, Any], programs: Any) -> None:
        shape: Shape = bench.SHAPES[name]
        rows = self.log.rows(op, name)
        arguments = self._tried(op, name, "arguments", shape.arguments)
        if arguments is None:
            return
        samplers: dict[str, timing.Sampler] = {}
        if not self.on_gpu:
            for contender, program in programs.items():
                with self._failing(rows[contender]):
                    self._compare(contender, program(*arguments), rows)
                    samplers[contender] = timing.call_sampler(program, arguments)
                    rows[contender] |= {"method": "call", "calls": 1}
        else:
            sets = timing.buffer_sets(arguments, shape.bytes)
            samplers |= self._chains(shape, functions, programs, sets, rows)
            samplers |= self._of_torch(op, bench, name, sets)
        rows = self.log.rows(op, name)

        def failed(contender: str, error: Exception) -> None:
            self._fail(rows[contender], error)

        for contender, seconds in timing.in_turns(samplers, self.rounds, failed).items():
            row = rows[contender]
            row["seconds"] = seconds
            if row["method"] == "chain":
                row |= {"seconds": [max(one - self.tap, one / 2) for one in seconds], "with_tap": seconds}

    def _chains(
        self,
        shape: Shape,
        functions: Mapping[str, Any],
        programs: Mapping[str, Any],
        sets: Any,
        rows: Mapping[str, Row],
    ) -> dict[str, timing.Sampler]:
        """Compiles the chain of each contender, several at once, and runs it once."""
        chains: dict[str, tuple[Any, tuple[Any, Any], int]] = {}
        for contender, program in programs.items():
            with self._failing(rows[contender]):
                self._compare(contender, program(*sets[0]), rows)
                single = timing.call_sampler(program, sets[0])
                seconds = max(min(single() for _ in range(2)) - self.launch, self.ceilings.least_seconds(shape))
                loops = timing.loops_for(seconds, len(sets))
                moving, fixed = timing.divided(sets)
                chains[contender] = (
                    timing.chain(functions[contender], loops).lower(moving, fixed),
                    (moving, fixed),
                    loops,
                )
                rows[contender] |= {"method": "chain", "calls": loops * len(sets), "argument_sets": len(sets)}
        samplers = {}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            compiled = {contender: pool.submit(chains[contender][0].compile) for contender in chains}
            for contender, program in compiled.items():
                with self._failing(rows[contender]):
                    _, state, loops = chains[contender]
                    samplers[contender] = timing.chained_sampler(program.result(), *state, loops)
        return samplers

    def _compare(self, contender: str, results: Any, rows: Mapping[str, Row]) -> None:
        """Note how far the results are from those of the first contender with results of the same shapes."""
        leaves = [x for x in jax.tree.leaves(results) if x.size]
        shapes = tuple(x.shape for x in leaves)
        if shapes in self._first:
            first, theirs = self._first[shapes]
            rows[contender] |= {"apart": apart(leaves, theirs), "apart_from": first}
        else:
            self._first[shapes] = contender, leaves

    def _of_torch(self, op: str, bench: ModuleType, name: str, sets: Any) -> dict[str, timing.Sampler]:
        """The contenders in torch, where it is installed and sees a GPU."""
        if not hasattr(bench, "torch_contenders") or not torch_sees_a_gpu():
            return {}
        shape: Shape = bench.SHAPES[name]
        samplers = {}
        functions = self._tried(op, name, "torch_contenders", lambda: bench.torch_contenders(shape)) or {}
        for contender, function in functions.items():
            row = self._row(op, name, shape, contender)
            with self._failing(row):
                seconds = max(2 * self.ceilings.least_seconds(shape), 2e-5)
                samplers[contender], how = timing.torch_sampler(function, sets, seconds)
                row |= {"method": f"torch, {how}", "argument_sets": len(sets)}
        return samplers

    def _row(self, op: str, name: str, shape: Shape, contender: str) -> Row:
        row: Row = {
            "op": op,
            "shape": name,
            "contender": contender,
            "arguments": [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(shape.abstract())],
            "flops": shape.flops,
            "bytes": shape.bytes,
        }
        self.log.found["rows"].append(row)
        return row

    def _tried(self, op: str, name: str, what: str, function: Callable[[], Any]) -> Any:
        """What it gives; None, and a row with the error, where it raises."""
        try:
            return function()
        except Exception as error:
            self._fail(
                self._row(op, name, importlib.import_module(f"assay_kernels.{op}.bench").SHAPES[name], what), error
            )

    @contextlib.contextmanager
    def _failing(self, row: Row) -> Any:
        """What raises inside is the row's error, not the run's."""
        try:
            yield
        except Exception as error:
            self._fail(row, error)

    def _fail(self, row: Row, error: Exception) -> None:
        row["error"] = f"{type(error).__name__}: {error}"
        self.log.write()


def torch_sees_a_gpu() -> bool:
    """Whether torch is installed and has CUDA."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def report(op: str, name: str, shape: Shape, rows: Mapping[str, Row], ceilings: Ceilings) -> None:
    """Print a shape's table."""
    print(f"{op} {name}: {' '.join(next(iter(rows.values()))['arguments']) if rows else 'nothing to run'}")
    for contender, row in rows.items():
        if "error" in row:
            print(f"  {contender:20s} FAILED {row['error'].splitlines()[0][:160]}")
            continue
        memory = f"{row['temp_bytes'] / 2**20:9.1f} MiB" if "temp_bytes" in row else " " * 13
        far = (
            f"  APART by {row['apart']:.1e} from {row['apart_from']}"
            if not float(row.get("apart", 0.0)) <= APART
            else ""
        )
        print(f"  {contender:20s} {memory}  {_timing(row, shape, rows, ceilings)}".rstrip() + far)
    sys.stdout.flush()


def _timing(row: Row, shape: Shape, rows: Mapping[str, Row], ceilings: Ceilings) -> str:
    if not row.get("seconds"):
        return ""
    spread = sorted(row["seconds"])
    median = statistics.median(spread)
    parts = [f"{median * 1e3:10.4f} ms ({spread[0] * 1e3:.4f} to {spread[-1] * 1e3:.4f})"]
    if shape.flops:
        parts.append(f"{shape.flops / median / 1e12:8.3f} TFLOP/s")
    if shape.bytes:
        parts.append(f"{shape.bytes / median / 1e9:8.1f} GB/s")
    if ceilings.least_seconds(shape):
        parts.append(f"{100 * ceilings.least_seconds(shape) / median:5.1f} % of ceiling")
    others = [k for k, r in rows.items() if r.get("seconds") and r is not row]
    if others:
        best = min(others, key=lambda k: statistics.median(rows[k]["seconds"]))
        parts.append(f"{ratio(rows[best]['seconds'], row['seconds']):.3f} x as fast as {best}")
    return "  ".join(parts)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as fast as theirs ours are: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=False))


def claim(
    op: str, bar: Bar, shape: Shape, rows: Mapping[str, Row], device: Target, measured: bool
) -> dict[str, Any] | None:
    """A bar as it stands: its value, and whether it is asked here and holds. None where it is about time that was not measured here."""
    memory = bar.unit == "x less memory"
    if not memory and not measured:
        return None
    found: dict[str, Any] = {
        "bar": dataclasses.asdict(bar),
        "asked": memory or device.device_kind == ASKED,
        "value": None,
    }
    what = {"x less memory": "memory", "x": f"{bar.contender}_ratio"}.get(bar.unit, bar.contender)
    found["name"] = f"{op}_{bar.shape}_{what}"
    row = rows.get(bar.contender, {})
    field = "temp_bytes" if memory else "seconds"
    rivals = [rows[k] for k in bar.rivals or rows if k != bar.contender and rows.get(k, {}).get(field)]
    if row.get(field) is None or (bar.unit.startswith("x") and not rivals):
        return found | {"holds": False}
    if memory:
        found["value"] = min(r["temp_bytes"] for r in rivals) / max(row["temp_bytes"], 1)
    elif bar.unit == "x":
        best = min(rivals, key=lambda r: statistics.median(r["seconds"]))
        found["value"] = ratio(best["seconds"], row["seconds"])
    else:
        work = shape.flops if bar.unit == "TFLOP/s" else shape.bytes
        found["value"] = work / statistics.median(row["seconds"]) / 1e12
    return found | {"holds": found["value"] >= bar.at_least}


def line(claimed: Mapping[str, Any]) -> str:
    """The line of a claim."""
    bar, value = Bar(**claimed["bar"]), claimed["value"]
    against = f" than {', '.join(bar.rivals)}" if bar.rivals and bar.unit == "x less memory" else ""
    against = against or (f" as fast as {', '.join(bar.rivals) or 'the best other'}" if bar.unit == "x" else "")
    unit = "x less temp memory" if bar.unit == "x less memory" else bar.unit
    target = (
        f"target >= {bar.at_least}"
        if claimed["asked"]
        else f"bar >= {bar.at_least} on an H200; not asked of this device"
    )
    shown = "no figure" if value is None else f"{value:.2f}"
    return f"result: {claimed['name']} {shown} {unit}{against}, {bar.contender} ({target})"


def main() -> int:
    """Run what is asked for; 0 when every target is met and nothing failed."""
    ops = benched()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="*", help=f"of {', '.join(ops)}; all without")
    parser.add_argument("--shape", action="append", help="a shape of the op's bench module; all without")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write all figures; written anew whenever there is one more")
    parser.add_argument("--memory-only", action="store_true", help="compile, and time nothing")
    parser.add_argument(
        "--smoke", action="store_true", help="the least shape of each op, one round: that it runs, not what it says"
    )
    parser.add_argument("--list", action="store_true", help="print the ops and their shapes")
    args = parser.parse_args()
    if unknown := set(args.op) - set(ops):
        parser.error(f"no op {', '.join(sorted(unknown))}; there are {', '.join(ops)}")
    benches = {op: importlib.import_module(f"assay_kernels.{op}.bench") for op in args.op or ops}
    known = {name for bench in benches.values() for name in bench.SHAPES}
    if unknown := set(args.shape or ()) - known:
        parser.error(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    if args.list:
        print("\n".join(f"{op}: {' '.join(bench.SHAPES)}" for op, bench in benches.items()))
        return 0
    rounds = 1 if args.smoke else args.rounds
    log = Log(args.json, current_target(), {"smoke": args.smoke, "memory_only": args.memory_only, "rounds": rounds})
    print(f"device: {current_target()}; {', '.join(f'{k} {v}' for k, v in log.found['versions'].items())}", flush=True)
    runner = Runner(log, rounds, args.memory_only)
    for op, bench in benches.items():
        barred = {bar.shape for bar in bench.BARS}
        for name in [least(bench)] if args.smoke else args.shape or sorted(bench.SHAPES, key=lambda n: n not in barred):
            if name in bench.SHAPES and not log.is_done(op, name):
                run_shape(runner, op, bench, name)
    log.found["complete"] = True
    log.write()
    failed = any("error" in row for row in log.found["rows"])
    missed = any(one["asked"] and not one["holds"] for one in log.found["claims"])
    return 1 if failed or missed else 0


def least(bench: ModuleType) -> str:
    """The shape with the least work, of those that run on a CPU where there are any."""
    work = lambda name: (
        "cpu" not in bench.SHAPES[name].on,
        max(bench.SHAPES[name].flops / 100, bench.SHAPES[name].bytes),
    )
    return min(bench.SHAPES, key=work)


def run_shape(runner: Runner, op: str, bench: ModuleType, name: str) -> None:
    """Measure a shape, print its table and what it claims, and note that it is done."""
    shape, log = bench.SHAPES[name], runner.log
    runner.measure(op, bench, name)
    rows = log.rows(op, name)
    report(op, name, shape, rows, runner.ceilings)
    found = [
        claim(op, bar, shape, rows, current_target(), runner.times(shape)) for bar in bench.BARS if bar.shape == name
    ]
    claims = [one for one in found if one is not None]
    log.found["claims"] += claims
    log.found["results"] += [line(one) for one in claims]
    log.found["done"].append(f"{op} {name}")
    for one in claims:
        print(line(one), flush=True)
    log.write()


if __name__ == "__main__":
    sys.exit(main())
