"""What does saving cost? Training with a checkpoint every 50 steps against training without, in turns; and the memory that saves take.

    python benchmarks/checkpoint_cost.py --text tinyshakespeare.txt

Time: one Trainer of experiments/lm_shakespeare_shape.gin (0.8M parameters) and one of its larger form (10.7M), each with a run directory
and its log. Chunks of steps with a save at every 50th and chunks without any come in turns; both end their dispatches at the same steps.
A chunk's clock stops when its last step is done and what was begun within it is on disk. Processor time is printed beside it: on a CPU
what saves in the background takes it from the step, and it is steadier than the clock.
Memory: resident bytes that a save adds at its peak, over the bytes of the state, for a model of 43M parameters (512 MiB of state); and how
much more the process holds after 200 saves than after 20.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax

from assay import config, devices, runs
from assay.checkpoint.checkpoints import Checkpoints
from assay.plan.plan import Plan, make_plan
from assay.track import Fanout
from assay.train import begin
from assay.train.interrupt import StopRequest
from assay.train.loop import Trainer
from assay.train.progress import Progress

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "lm_shakespeare_shape.gin"
EVERY = 50
COST, PEAK, GROWTH = 1.02, 1.25, 0.05
SIZES = {
    "small": (),
    "10m": ("model.transformer.layers=6", "model.transformer.width=384", "model.transformer.heads=6"),
    "43m": ("model.transformer.layers=6", "model.transformer.width=768", "model.transformer.heads=12"),
}
CHUNKS = {"small": 200, "10m": 50}  # steps


def planned(size: str, text: Path, steps: int) -> Plan:
    """The experiment in one of its sizes, for so many steps."""
    settings = {
        "dataset.text_files.files": text,
        "experiment.steps": steps,
        "experiment.evaluate_every": 0,
        "experiment.evaluate_splits": "[]",
        "experiment.checkpoint_every": 0,
        "experiment.keep_best": "None",
        "schedule.cosine.warmup_steps": 10,
    }
    loaded = config.load(EXPERIMENT, [*(f"{key}={value}" for key, value in settings.items()), *SIZES[size]])
    return make_plan(loaded.experiment, loaded.where)


class Alternate:
    """A callback, the last of all: chunks with saves at every EVERYth step and chunks without; the (wall, processor) seconds of each."""

    def __init__(self, chunk: int) -> None:
        self.seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        self._chunk, self._saves, self._since = chunk, True, _clocks()

    def due(self, step: int) -> bool:
        """At every EVERYth step, whether it saves there or not."""
        return step % EVERY == 0

    def act(self, trainer: Trainer, step: int) -> None:
        """Save, in a chunk that does, but not at its end; there, stop the clock and go over to the other kind."""
        if step % self._chunk:
            if self._saves:
                trainer.save(step)
            return
        jax.block_until_ready(trainer.state)
        trainer.checkpoints.wait()
        trainer.tracking.flush()
        now, since = _clocks(), self._since
        self.seconds[self._saves].append((now[0] - since[0], now[1] - since[1]))
        self._saves = not self._saves
        self._since = _clocks()
        if self._saves and step < trainer.plan.experiment.steps:
            trainer.save(step)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def cost(size: str, text: Path, rounds: int) -> float:
    """The median over rounds of a chunk's time with saves over its time without, printed."""
    chunk = CHUNKS[size]
    plan = planned(size, text, chunk * 2 * (rounds + 1))
    times = Alternate(chunk)
    with tempfile.TemporaryDirectory() as root:
        run = runs.create(Path(root), "checkpoint_cost")
        progress = Progress(plan.experiment.steps, plan.spec.unit)
        with run.session():
            trainer = Trainer(plan, run, Fanout(run, report=progress.line), progress, {})
            trainer.callbacks.append(times)
            try:
                trainer.train(trainer.begin(), StopRequest())
            finally:
                trainer.close()
                trainer.tracking.finish("completed")
    saving, plain = (times.seconds[kind][1:] for kind in (True, False))
    wall, processor = ([a[i] / b[i] for a, b in zip(saving, plain, strict=True)] for i in (0, 1))
    print(f"  {size}: {len(wall)} chunks of {chunk} steps, {chunk // EVERY} saves each; load {os.getloadavg()[0]:.1f}")
    print(f"  wall {', '.join(f'{r:.3f}' for r in wall)}; processor {', '.join(f'{r:.3f}' for r in processor)}")
    print(f"  processor time: {statistics.median(processor):.3f} x that without saves")
    ratio = statistics.median(wall)
    print(f"result: checkpoint_cost_{size} {ratio:.3f} x the step time (target <= {COST})", flush=True)
    return ratio


def peak(text: Path, saves: int) -> float:
    """Median over saves of the resident bytes added at the peak, over the bytes of the state, printed."""
    plan = planned("43m", text, 20)
    state = jax.block_until_ready(begin.drawn(plan))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    found = []
    with tempfile.TemporaryDirectory() as root:
        checkpoints = Checkpoints(Path(root), keep=1)
        for step in range(saves + 1):
            before = resident()
            with sampled() as samples:
                checkpoints.save(step, state, {}, {})
                checkpoints.wait()
            found.append((max(samples) - before) / size)
        checkpoints.close()
    print(
        f"  state {size / 2**20:.0f} MiB; peaks {', '.join(f'{x:.2f}' for x in found)} (the first, which compiles, is left out)"
    )
    median = statistics.median(found[1:])
    print(f"result: checkpoint_peak_memory {median:.3f} x the state's bytes (target <= {PEAK})", flush=True)
    return median


def growth(text: Path, saves: int) -> float:
    """Resident bytes after all saves less those after a tenth, over the bytes of the state, printed."""
    plan = planned("10m", text, 20)
    state = jax.block_until_ready(begin.drawn(plan))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    held = []
    with tempfile.TemporaryDirectory() as root:
        checkpoints = Checkpoints(Path(root), keep=2)
        for step in range(saves):
            checkpoints.save(step, state, {}, {})
            checkpoints.wait()
            held.append(resident())
        checkpoints.close()
    tenth = saves // 10
    early, late = statistics.median(held[tenth : 2 * tenth]), statistics.median(held[-tenth:])
    print(
        f"  state {size / 2**20:.0f} MiB; resident {early / 2**20:.0f} MiB after {tenth} saves, {late / 2**20:.0f} after {saves}"
    )
    grown = (late - early) / size
    print(
        f"result: checkpoint_growth {grown:.3f} x the state's bytes over {saves} saves (target <= {GROWTH})", flush=True
    )
    return grown


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def sampled() -> Iterator[list[int]]:
    """`resident()` every two milliseconds while inside."""
    found, done = [resident()], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            found.append(resident())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


PARTS = ("time", "memory")


def main(words: Sequence[str] | None = None) -> int:
    """Measure the parts asked for; 0 when all targets hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt (default: in ASSAY_DATA_DIR)")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="chunks of each kind that count")
    parser.add_argument("--saves", type=int, default=200, help="of the test for growth")
    args = parser.parse_args(words)
    text = args.text or Path(os.environ.get("ASSAY_DATA_DIR", ".")) / "tinyshakespeare.txt"
    devices.configure()
    parts = args.part or PARTS
    held = []
    if "memory" in parts:
        held += [peak(text, 5) <= PEAK, growth(text, args.saves) <= GROWTH]
    if "time" in parts:
        held += [cost(size, text, args.rounds) <= COST for size in CHUNKS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
