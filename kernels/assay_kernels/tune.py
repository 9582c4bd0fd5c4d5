"""Measure configurations of kernels on the GPU that is here, and write the best of each shape where assay_kernels.tuning reads them.

    python -m assay_kernels.tune grouped_matmul                        # every implementation and shape of the op's bench module
    python -m assay_kernels.tune attention mosaic --shape causal_4k --seconds 60
    python -m assay_kernels.tune attention --dry-run                   # shapes and the sizes of their spaces; needs no GPU

A configuration that does not compile, needs more shared memory than there is or spills registers is left out before anything is timed.
The others are timed side by side (see assay_kernels.timing); after the first round those that are far behind are dropped. A shape whose
configurations do not all compute the same is an error and is not written. DIR/<device>.json is replaced after each shape, as a whole;
entries of other ops, implementations and shapes stay.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime
import importlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from assay_kernels import current_target, timing
from assay_kernels.benching import Shape, Tunable, apart, benched
from assay_kernels.tuning import file_name

FAR_BEHIND = 1.5  # times the best, in the first round
APART = 2e-2  # relative difference in norm that two configurations' results may have; they are of bf16
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
Entry = dict[str, Any]
Report = Callable[[str], None]


class Disagreement(ValueError):
    """Two configurations compute different results."""


@dataclasses.dataclass
class Candidate:
    """A configuration of a shape. refused: why it is not timed, or None. seconds: of a call, one for each round."""

    config: Any
    refused: str | None = None
    estimate: float = 0.0
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)


def tune(
    op: str,
    implementation: str,
    name: str,
    shape: Shape,
    tunable: Tunable,
    *,
    rounds: int,
    deadline: float,
    report: Report,
) -> Entry | None:
    """The entry of the best configuration for a shape, measured on the default device; None where there is none to be had.

    deadline: of time.monotonic; configurations that are not reached by then are left out, which the entry says. Raises Disagreement.
    """
    candidates = [Candidate(config) for config in tunable.space(shape)]
    arguments = shape.arguments()
    sets = timing.buffer_sets(arguments, shape.bytes)
    launch = timing.launch_seconds()
    first: list[Any] | None = None
    for i, candidate in enumerate(candidates):
        if time.monotonic() > deadline:
            candidate.refused = "not reached in time"
        else:
            results = _tried(candidate, tunable.run(shape, candidate.config), arguments, launch)
            if candidate.refused is None:
                first = results if first is None else first
                _compare(results, first, candidate.config)
        said = candidate.refused or f"about {candidate.estimate * 1e3:.3f} ms"
        report(f"  {i + 1}/{len(candidates)} {candidate.config}: {said}")
    _time(shape, tunable, [c for c in candidates if c.refused is None], sets, rounds, deadline)
    timed = [c for c in candidates if c.seconds]
    if not timed:
        report(f"  {op} {implementation} {name}: no configuration could be timed; nothing is written")
        return None
    return _entry(op, implementation, name, tunable.key(shape), candidates, min(timed, key=lambda c: c.median))


def merge(path: Path, entry: Mapping[str, Any]) -> None:
    """Put an entry into a table in place of the one for the same op, implementation and shape; the file is replaced as a whole.

    Raises ValueError for a file that is no table: it is not overwritten.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
        kept = [e for e in entries if _identity(e) != _identity(entry)]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} is no table of configurations ({problem}); move it away, or write elsewhere"
        ) from None
    ordered = sorted([*kept, dict(entry)], key=_identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump({"entries": ordered}, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)  # noqa: PTH101
    Path(file.name).replace(path)


def table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each entry: where the best configuration is, and how much better it is than the worst and the first."""
    lines = []
    for e in entries:
        medians = {config: statistics.median(seconds) for config, seconds in e["timings"].items()}
        worst = max(medians.values()) / min(medians.values())
        lines.append(
            f"{e['op']} {e['implementation']} {e['name']}: {e['config']}  {e['median'] * 1e3:.4f} ms "
            f"({e['spread'][0] * 1e3:.4f} to {e['spread'][1] * 1e3:.4f}), of {len(medians)} timed, {len(e['refused'])} refused, "
            f"{worst:.2f} x the slowest"
        )
    return lines


def _tried(candidate: Candidate, function: Callable[..., Any], arguments: Sequence[Any], launch: float) -> list[Any]:
    """Compile and run it once; its results, or none and the reason in `refused`."""
    try:
        with overheard() as said:
            program = jax.jit(function).lower(*arguments).compile()
            results = jax.block_until_ready(jax.tree.leaves(program(*arguments)))
    except Exception as error:  # what Pallas, XLA and ptxas raise is of many kinds
        candidate.refused = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        return []
    spilled = sum(int(a) + int(b) for a, b in SPILLS.findall(said()))
    if spilled:
        candidate.refused = f"spills {spilled} bytes of registers"
        return []
    sample = timing.call_sampler(program, arguments)
    candidate.estimate = max(min(sample() for _ in range(2)) - launch, 1e-6)
    return results


def _compare(results: Sequence[Any], first: Sequence[Any], config: Any) -> None:
    if not (difference := apart(results, first)) <= APART:
        raise Disagreement(
            f"{config} computes something else than the first configuration (apart by {difference:.1e} in norm)"
        )


def _time(shape: Shape, tunable: Tunable, candidates: list[Candidate], sets: Any, rounds: int, deadline: float) -> None:
    """Fill in the seconds of those that are not far behind."""
    if not candidates:
        return
    best = min(c.estimate for c in candidates)
    near = [c for c in candidates if c.estimate <= 2 * FAR_BEHIND * best]  # estimates are rough
    lowered = []
    for candidate in near:
        loops = timing.loops_for(candidate.estimate, len(sets))
        state = timing.divided(sets)
        lowered.append((timing.chain(tunable.run(shape, candidate.config), loops).lower(*state), state, loops))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        programs = list(pool.map(lambda one: one[0].compile(), lowered))
    samplers = [
        timing.chained_sampler(program, *state, loops)
        for program, (_, state, loops) in zip(programs, lowered, strict=True)
    ]
    for i in range(rounds):
        if i and time.monotonic() > deadline:
            break
        quickest = min(c.median for c in near) if i else 0.0
        for candidate, sample in list(zip(near, samplers, strict=True))[:: -1 if i % 2 else 1]:
            if not i or candidate.median <= FAR_BEHIND * quickest:
                candidate.seconds.append(sample())


def _entry(
    op: str, implementation: str, name: str, key: Mapping[str, int | str], tried: Sequence[Candidate], best: Candidate
) -> Entry:
    return {
        "op": op,
        "implementation": implementation,
        "shape": dict(key),
        "config": dataclasses.asdict(best.config),
        "name": name,
        "median": best.median,
        "spread": [min(best.seconds), max(best.seconds)],
        "timings": {str(c.config): c.seconds for c in tried if c.seconds},
        "estimates": {str(c.config): c.estimate for c in tried if not c.seconds and c.refused is None},
        "refused": {str(c.config): c.refused for c in tried if c.refused is not None},
        "device": current_target().device_kind,
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _identity(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return entry["op"], entry["implementation"], json.dumps(entry["shape"], sort_keys=True)


@contextlib.contextmanager
def overheard() -> Iterator[Callable[[], str]]:
    """What is written to the process' output and error inside, also by ptxas and C++; it is not shown."""
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(fd) for fd in (1, 2)]
    with tempfile.TemporaryFile() as file:
        for fd in (1, 2):
            os.dup2(file.fileno(), fd)
        text = [""]
        try:
            yield lambda: text[0]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, old in zip((1, 2), kept, strict=True):
                os.dup2(old, fd)
                os.close(old)
            file.seek(0)
            text[0] = file.read().decode(errors="replace")


def _wanted(
    bench: ModuleType, op: str, implementation: str | None, shapes: Sequence[str] | None
) -> list[tuple[str, str, Shape, Tunable]]:
    """(implementation, shape's name, shape, tunable) of all that is asked for; one shape for each key. Raises ValueError for others."""
    tunables: Mapping[str, Tunable] = getattr(bench, "TUNABLE", {})
    if not tunables:
        raise ValueError(f"{op} has nothing to tune")
    if implementation is not None and implementation not in tunables:
        raise ValueError(f"{op} has no tunable implementation {implementation!r}; there are {', '.join(tunables)}")
    if unknown := set(shapes or ()) - set(bench.SHAPES):
        raise ValueError(f"{op} has no shape {', '.join(sorted(unknown))}; there are {', '.join(bench.SHAPES)}")
    found: dict[tuple[str, str], tuple[str, str, Shape, Tunable]] = {}
    for how, tunable in tunables.items():
        for name, shape in bench.SHAPES.items():
            if implementation in (None, how) and name in (shapes or bench.SHAPES) and tunable.space(shape):
                key = json.dumps(tunable.key(shape), sort_keys=True)
                found.setdefault((how, key), (how, name, shape, tunable))
    return list(found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune what is asked for; 0 when every shape has an entry, 1 when one has none, 2 for what cannot be done here."""
    ops = benched()
    parser = argparse.ArgumentParser(
        prog="python -m assay_kernels.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("op", choices=ops)
    parser.add_argument("implementation", nargs="?", help="all that can be tuned without")
    parser.add_argument("--shape", action="append", help="a shape of the op's bench module; all without")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "data",
        metavar="DIR",
        help="default: the package's own data",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after about so many; shapes share them"
    )
    parser.add_argument("--dry-run", action="store_true", help="list shapes and the sizes of their spaces")
    args = parser.parse_args(arguments)
    bench = importlib.import_module(f"assay_kernels.{args.op}.bench")
    try:
        wanted = _wanted(bench, args.op, args.implementation, args.shape)
    except ValueError as error:
        parser.error(str(error))
    if args.dry_run:
        for how, name, shape, tunable in wanted:
            print(f"{args.op} {how} {name}: {len(tunable.space(shape))} configurations, key {dict(tunable.key(shape))}")
        return 0
    target = current_target()
    if target.platform != "cuda":
        parser.error(
            f"tuning measures a GPU, and there is none: jax's default device is {target} (--dry-run needs none)"
        )
    return tune_all(args.op, wanted, args.out, rounds=args.rounds, seconds=args.seconds)


def tune_all(
    op: str, wanted: Sequence[tuple[str, str, Shape, Tunable]], out: Path, *, rounds: int, seconds: float
) -> int:
    """Tune on the default device, whatever it is, and write `out`/<device>.json; 0 when every shape has an entry."""
    path, deadline = out / file_name(current_target().device_kind), time.monotonic() + seconds
    entries, failed = [], []
    for i, (how, name, shape, tunable) in enumerate(wanted):
        print(f"{i + 1}/{len(wanted)} {op} {how} {name}, {len(tunable.space(shape))} configurations", flush=True)
        share = time.monotonic() + (deadline - time.monotonic()) / (len(wanted) - i)
        report = lambda line: print(line, flush=True)
        try:
            entry = tune(op, how, name, shape, tunable, rounds=rounds, deadline=share, report=report)
        except Exception as error:
            print(f"  FAILED {type(error).__name__}: {error}", flush=True)
            entry = None
        if entry is None:
            failed.append(f"{how} {name}")
            continue
        merge(path, entry)
        entries.append(entry)
    print("\n".join(table(entries)))
    print(f"{path}: {len(entries)} entries written" + (f"; without one: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
