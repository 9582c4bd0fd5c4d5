"""Is a run that was killed and resumed the run that was not? Kills real runs at random moments, over and over, and compares.

    python benchmarks/kill_sweep.py --n 250

Each trial is one run of a small language model on the standard library's sources (dropout, moving average, packed documents, cosine
schedule, best checkpoint kept), killed up to --kills times and resumed each time, on one device, on four virtual ones with FSDP,
and in two processes. One kill in five is a SIGTERM, the others are SIGKILL; it comes at a random moment of the session, or while data is
prepared for the first time, or while a checkpoint is written. In the end the digest of every array of the final state (parameters,
optimizer, moving average, random key, step) and every logged loss must be those of a run left alone with the same layout.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.checkpoint import manifest
from assay.checkpoint.checkpoints import Checkpoints
from assay.runs import read_metrics
from assay.runs.directory import RunDirectory, run_directories

GIN = """
experiment.model = @model.transformer()
model.transformer.layers = 1
model.transformer.width = 16
model.transformer.heads = 4
model.transformer.dropout = 0.1
experiment.dataset = @dataset.python_stdlib()
dataset.python_stdlib.tokenizer = @tokenizer.bytes()
dataset.python_stdlib.max_bytes = 300_000
dataset.python_stdlib.context = 32
dataset.python_stdlib.packing = 'documents'
experiment.objective = @objective.next_token()
experiment.metrics = [@metric.bits_per_byte()]
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = @schedule.cosine()
schedule.cosine.peak = 1e-2
schedule.cosine.warmup_steps = 10
experiment.parallelism = @{parallelism}()
experiment.trackers = []
experiment.steps = 150
experiment.batch_size = 8
experiment.ema_decay = 0.95
experiment.steps_per_dispatch = 5
experiment.log_every = 1
experiment.evaluate_every = 25
experiment.checkpoint_every = 25
experiment.keep_best = 'validation/loss'
"""
STEPS = 150
SIGTERMS = 0.2  # of all signals
PATIENCE = 120.0  # seconds that a session may take before the trial counts as hung


@dataclasses.dataclass(frozen=True)
class Layout:
    """Processes, virtual devices in each, and the parallelism plugin."""

    name: str
    processes: int
    devices: int
    parallelism: str


LAYOUTS = [
    Layout("1 device", 1, 1, "parallelism.data_parallel"),
    Layout("4 devices", 1, 4, "parallelism.fsdp"),
    Layout("2 processes", 2, 1, "parallelism.data_parallel"),
]


@dataclasses.dataclass
class Place:
    """A folder with the runs, the experiment file and, where it is not shared, the data cache of one trial."""

    path: Path
    layout: Layout
    cache: Path

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "small.gin").write_text(GIN.format(parallelism=self.layout.parallelism))

    @property
    def run(self) -> RunDirectory | None:
        """The run, once there is one."""
        found = run_directories(self.path / "runs")
        assert len(found) <= 1, "a trial has one run"
        return found[0] if found else None

    def saving(self) -> bool:
        """Whether a checkpoint is being written now."""
        return any(self.path.glob("runs/*/checkpoints/*tmp*"))

    def preparing(self) -> bool:
        """Whether data is being prepared now."""
        return any(self.cache.glob("*/*.unfinished"))

    def start(self) -> list[subprocess.Popen[str]]:
        """`assay run`, or `assay resume` where there is a run, in as many processes as the layout has."""
        words = ["resume", self.run.id] if self.run else ["run", "small.gin"]
        flags = os.environ.get("XLA_FLAGS", "")  # of one that is there twice, the last counts
        environment = os.environ | {
            "ASSAY_RUNS": str(self.path / "runs"),
            "ASSAY_CACHE_DIR": str(self.cache),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={self.layout.devices}".strip(),
        }
        address = f"127.0.0.1:{_free_port()}"
        started: list[subprocess.Popen[str]] = []
        for i in range(self.layout.processes):
            several = ["--coordinator", address, "--processes", str(self.layout.processes), "--process", str(i)]
            command = [sys.executable, "-m", "assay.cli", *words, *(several if self.layout.processes > 1 else [])]
            with (self.path / f"log-{i}.txt").open("a") as log:
                log.write(f"--- {' '.join(words)}\n")
                log.flush()
                process = subprocess.Popen(command, env=environment, cwd=self.path, stdout=log, stderr=log, text=True)
            started.append(process)
        return started

    def to_the_end(self) -> float:
        """Run or resume until all steps are done; seconds of the last session. Raises AssertionError when it fails."""
        begun = time.monotonic()
        codes = _codes(self.start())
        assert codes == [0] * len(codes), f"exit codes {codes}; see {self.path}"
        return time.monotonic() - begun

    def outcome(self) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """(digest of every array of the final state, every logged loss and evaluation without its time)."""
        assert self.run is not None
        checkpoints = Checkpoints(self.run.checkpoints, read_only=True)
        try:
            assert not manifest.damage(self.run.checkpoints / str(STEPS))
            digests = checkpoints.extra(STEPS)["digests"]
        finally:
            checkpoints.close()
        rows = [row for row in read_metrics(self.run.metrics) if row["context"] in ("train", "validation")]
        return digests, [{k: v for k, v in row.items() if k != "time"} for row in rows]


def sweep(n: int, folder: Path, *, seed: int = 0, kills: int = 4, layouts: list[Layout] = LAYOUTS) -> dict[str, Any]:
    """Kill `n` times below `folder`. Counts by signal and moment, and the trials that did not end as the run left alone."""
    rng = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    alone = {}
    trial = 0
    while sum(counts.values()) < n and len(failed) < 3:
        layout = layouts[trial % len(layouts)]
        if layout not in alone:
            place = Place(folder / f"alone-{layout.name.replace(' ', '-')}", layout, folder / "cache")
            place.to_the_end()
            seconds = Place(folder / f"timed-{layout.name.replace(' ', '-')}", layout, folder / "cache").to_the_end()
            alone[layout] = (place.outcome(), seconds)
            print(f"{layout.name}: a run left alone takes {seconds:.1f} s", flush=True)
        cold = rng.random() < 0.2
        path = folder / f"trial-{trial}"
        place = Place(path, layout, path / "cache" if cold else folder / "cache")
        problem = _trial(place, rng, n, min(kills, n - sum(counts.values())), alone[layout], counts, cold)
        if problem:
            failed.append(f"trial {trial} on {layout.name}: {problem}")
            print(failed[-1], flush=True)
        else:
            shutil.rmtree(path)
        trial += 1
        print(f"{trial} trials, {sum(counts.values())} kills, {len(failed)} failed", flush=True)
    return {"kills": dict(sorted(counts.items())), "trials": trial, "failed": failed}


def _trial(
    place: Place,
    rng: random.Random,
    n: int,
    kills: int,
    alone: tuple[Any, float],
    counts: collections.Counter[str],
    cold: bool,
) -> str | None:
    """Kill and resume a run, then let it end; what is wrong with it, or None."""
    expected, seconds = alone
    try:
        for i in range(kills):
            terms = sum(count for name, count in counts.items() if name.startswith("SIGTERM"))
            share = (SIGTERMS * n - terms) / (n - sum(counts.values()))
            number = signal.SIGTERM if rng.random() < share else signal.SIGKILL
            delay = rng.uniform(0, seconds)
            moment = rng.choice(["any", "any", "any", "saving"]) if i or not cold else "preparing"
            processes = place.start()
            ready = {
                "any": _after(delay),
                "saving": _both(_after(delay / 2), place.saving),
                "preparing": place.preparing,
            }
            if not _wait(processes, ready[moment]):
                break  # it was done before
            where = _phase(place)
            for process in processes:
                process.send_signal(number)
            codes = _codes(processes)
            if codes == [0] * len(codes):
                break  # the signal came after the last step
            if number == signal.SIGTERM and not set(codes) <= {75, -signal.SIGTERM}:
                return f"SIGTERM ended with exit codes {codes}"
            counts[f"{number.name} {where}"] += 1
        if place.run is None or place.run.status() != "completed":
            place.to_the_end()
        digests, rows = place.outcome()
        if digests != expected[0]:
            return f"other arrays: {[k for k in expected[0] if digests.get(k) != expected[0][k]][:5]}"
        if rows != expected[1]:
            return f"other log: {len(rows)} rows for {len(expected[1])}"
    except (AssertionError, subprocess.TimeoutExpired, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _after(delay: float) -> Callable[[], bool]:
    until = time.monotonic() + delay
    return lambda: time.monotonic() >= until


def _both(first: Callable[[], bool], second: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: first() and second()


def _wait(processes: list[subprocess.Popen[str]], ready: Callable[[], bool]) -> bool:
    """Until `ready`; False when the processes end before."""
    while not ready():
        if all(process.poll() is not None for process in processes):
            return False
        time.sleep(0.001)
    return True


def _codes(processes: list[subprocess.Popen[str]]) -> list[int]:
    """The exit codes; no process outlives a session that takes too long."""
    try:
        return [process.wait(PATIENCE) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
            process.wait()
        raise


def _phase(place: Place) -> str:
    """What the session is about, as far as files show."""
    if place.preparing():
        return "preparing data"
    run = place.run
    if run is None:
        return "before the run directory"
    if place.saving():
        return "saving"
    sessions = run.record()["sessions"]
    if not sessions or sessions[-1]["exit"] is not None:
        return "starting"
    return "training or evaluating" if run.metrics.exists() and run.metrics.stat().st_size else "compiling"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> int:
    """Sweep, print the counts, and compare with the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=250, help="kills (default: 250)")
    parser.add_argument("--kills", type=int, default=4, help="of one run, at most (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where the runs go; failed ones stay there (default: a temporary one)"
    )
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kill-sweep-"))
    found = sweep(args.n, folder.absolute(), seed=args.seed, kills=args.kills)
    print(json.dumps(found["kills"], indent=1))
    good = found["trials"] - len(found["failed"])
    print(f"result: kill_sweep_kills {sum(found['kills'].values())} kills (target >= {args.n})")
    print(f"result: kill_sweep_identical {100 * good / found['trials']:.1f} % (target 100)")
    if found["failed"]:
        print(f"failed trials are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
