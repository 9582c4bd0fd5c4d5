"""Does it matter where a run runs? Trains one experiment on every mesh, strategy and number of processes, and moves it between all.

    python benchmarks/topology_matrix.py

A cell is a number of processes (1 or 2, with gloo), of devices (1, 2, 4, 8, virtual) and a strategy (data parallel, FSDP, tensor, FSDP with
tensor). Each cell trains a small transformer in fp32 for 100 steps. Against the cell of one device: the initial arrays and the stream of
batches must be the same bits, the losses of all steps and the evaluation at the end equal to 1e-6 of their value. Then the checkpoint
that each cell wrote at step 50 is moved to each other cell (and to itself), which must read the same bits, see the same batches to the
end, and log the same losses to 1e-6.
"""

import argparse
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STEPS, MOVED = 100, 50
TOLERANCE = 1e-6
DEVICES = 8  # of all processes together
STRATEGIES = ("dp", "fsdp", "tp", "fsdp+tp")


@dataclasses.dataclass(frozen=True)
class Cell:
    """Where a run runs."""

    processes: int
    devices: int
    strategy: str

    def __str__(self) -> str:
        return f"{self.processes}x{self.devices // self.processes}-{self.strategy}"


ALONE = Cell(1, 1, "dp")
CELLS = [
    Cell(processes, devices, strategy)
    for processes in (1, 2)
    for devices in (1, 2, 4, 8)
    for strategy in STRATEGIES
    if devices >= processes and not (devices == 1 and strategy == "fsdp+tp")
]
Job = tuple[Cell, Cell | None]  # where to train, and whose checkpoint to begin with


def measure(folder: Path, jobs: Sequence[Job]) -> None:
    """Do the jobs that are not done yet, in one session of as many processes for each number of processes."""
    for processes in (1, 2):
        wanted = [job for job in jobs if job[0].processes == processes and not outcome(folder, job).exists()]
        if wanted:
            _session(folder, processes, wanted)


def outcome(folder: Path, job: Job) -> Path:
    """The file with what came of a job."""
    return folder / "outcomes" / f"{job[0]}{f'-from-{job[1]}' if job[1] else ''}.npz"


def differences(folder: Path, job: Job) -> dict[str, float]:
    """How a job differs from one device alone: the share of arrays ("start") and batches ("stream"), relative "losses", "evaluation"."""
    alone, found = (_loaded(folder, each) for each in ((ALONE, None), job))
    first = 0 if job[1] is None else MOVED
    if job[1] is not None:
        alone |= {"digests": _loaded(folder, (job[1], None))["moved"]}
    losses, stream = alone["losses"][first:], alone["stream"][first:]
    assert len(found["losses"]) == len(losses) == STEPS - first
    return {
        "start": float(np.mean(found["digests"] != alone["digests"])),
        "stream": float(np.mean(np.any(found["stream"] != stream, axis=(1, 2)))),
        "losses": float(np.max(np.abs(found["losses"] - losses) / np.abs(losses))),
        "evaluation": float(abs(found["evaluation"] - alone["evaluation"]) / abs(alone["evaluation"])),
    }


def _loaded(folder: Path, job: Job) -> dict[str, np.ndarray]:
    """What came of a job, with the rows of all processes together."""
    with np.load(outcome(folder, job)) as file:
        found = dict(file)
    parts = [found.pop(f"rows-{i}") for i in range(job[0].processes)]
    starts = [int(found.pop(f"first-{i}")) for i in range(job[0].processes)]
    whole: dict[int, np.ndarray] = {}
    for start, part in zip(starts, parts, strict=True):
        for row in range(part.shape[1]):
            assert start + row not in whole or np.array_equal(whole[start + row], part[:, row])
            whole[start + row] = part[:, row]
    return found | {"stream": np.stack([whole[row] for row in range(len(whole))], axis=1)}


def _session(folder: Path, processes: int, jobs: Sequence[Job]) -> None:
    """Start the processes, wait for them. Raises AssertionError when one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outcomes").mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("".join(f"def f{i}(x):\n    return x + {i * 7 % 13}\n\n" for i in range(400)))
    plain = [[dataclasses.astuple(each) if each else None for each in job] for job in jobs]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    flags = os.environ.get("XLA_FLAGS", "")  # of one that is there twice, the last counts
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={DEVICES // processes}".strip(),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    started = []
    for i in range(processes):
        facts = {"folder": str(folder), "jobs": plain, "address": address, "processes": processes, "process": i}
        (folder / f"jobs-{processes}-{i}.json").write_text(json.dumps(facts))
        command = [sys.executable, __file__, "--jobs", str(folder / f"jobs-{processes}-{i}.json")]
        started.append(subprocess.Popen(command, env=environment, stdout=sys.stdout if i == 0 else subprocess.DEVNULL))
    while any(process.poll() is None for process in started):
        time.sleep(0.1)
        if any(process.poll() for process in started):  # the others would wait for it for ever
            for process in started:
                process.kill()
                process.wait()
    codes = [process.returncode for process in started]
    assert codes == [0] * processes, f"a session of {processes} processes failed with {codes}"


def _work(facts: Mapping[str, Any]) -> int:
    """One process of a session."""
    import jax

    from assay.parallel.processes import initialize

    if facts["processes"] > 1:
        initialize(facts["address"], facts["processes"], facts["process"])
    folder = Path(facts["folder"])
    trainer = None
    for number, (cell, begun) in enumerate(facts["jobs"], 1):
        job = (Cell(*cell), Cell(*begun) if begun else None)
        if number > 1 and facts["jobs"][number - 2][0] != cell:
            trainer = None
            jax.clear_caches()
        trainer = _train(folder, job, trainer)
        if jax.process_index() == 0:
            print(f"{number}/{len(facts['jobs'])} {outcome(folder, job).stem}", flush=True)
    return 0


def _train(folder: Path, job: Job, before: Any) -> Any:
    """Train in one cell, by Assay's Trainer, and write what came of it. Returns the trainer.

    before: the last trainer in this cell, whose plan and compiled programs are used again, or None.
    """
    import jax

    from assay import runs
    from assay.checkpoint.digests import digests
    from assay.parallel.processes import barrier, is_first, shared_text
    from assay.plan.plan import make_plan
    from assay.runs import read_metrics
    from assay.runs.directory import RunDirectory
    from assay.track.fanout import Fanout
    from assay.train.interrupt import StopRequest
    from assay.train.loop import Trainer
    from assay.train.progress import Progress

    cell, begun = job
    plan = before.plan if before else make_plan(_experiment(folder, cell), devices=_devices(cell))
    place = None
    if is_first():
        run = runs.create(folder / "runs", f"{cell}", steps=STEPS)
        place = str(run.path)
        if begun is not None:
            shutil.copytree(folder / "moved" / str(begun), run.checkpoints / str(MOVED))
    run = RunDirectory(Path(shared_text(place)))
    quiet = Progress(STEPS, "tokens", quiet=True)
    trainer = Trainer(plan, run, Fanout(run, primary=is_first()), quiet, {})
    if before:
        trainer.evaluator, trainer._dispatches = before.evaluator, before._dispatches
    recorder = _Recorder(trainer.batches)
    trainer.batches = recorder  # type: ignore[assignment]
    step = trainer.begin(MOVED if begun else None)
    started = digests(dataclasses.replace(trainer.state, frozen={}))
    assert trainer.train(step, StopRequest()) == "completed"
    extra = trainer.checkpoints.extra(MOVED)
    trainer.close()
    trainer.tracking.finish("completed")
    barrier("trained")
    rows = np.stack([batch["inputs"] for batch in recorder.seen])
    first = trainer.batches._batches.rows.start or 0
    np.savez(folder / f"rows-{jax.process_index()}.npz", rows=rows, first=first)
    barrier("rows")
    if is_first():
        logged = read_metrics(run.metrics)
        train = [row["loss"] for row in logged if row["context"] == "train"]
        (evaluation,) = [row["loss"] for row in logged if row["context"] == "validation"]
        values = {"losses": np.array(train), "evaluation": np.array(evaluation)}
        values |= {"digests": np.array([started[name] for name in sorted(started)])}
        values |= {"moved": np.array([extra["digests"][name] for name in sorted(started)])}
        for i in range(cell.processes):
            with np.load(folder / f"rows-{i}.npz") as part:
                values |= {f"rows-{i}": part["rows"], f"first-{i}": part["first"]}
        named: dict[str, Any] = values
        np.savez(outcome(folder, job), **named)
        if begun is None:
            shutil.copytree(run.checkpoints / str(MOVED), folder / "moved" / str(cell))
        shutil.rmtree(run.path)
    barrier("written")
    return trainer


class _Recorder:
    """Hands the batches on, and keeps what it handed."""

    def __init__(self, batches: Any) -> None:
        self._iterator = batches
        self.seen: list[Mapping[str, np.ndarray]] = []

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return self

    def __next__(self) -> Mapping[str, np.ndarray]:
        self.seen.append(next(self._iterator))
        return self.seen[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


def _devices(cell: Cell) -> list[Any]:
    """The first devices of each process."""
    import jax

    each = cell.devices // cell.processes
    return [d for i in range(cell.processes) for d in [d for d in jax.devices() if d.process_index == i][:each]]


def _experiment(folder: Path, cell: Cell) -> Any:
    """The experiment of all cells, with the cell's strategy."""
    from assay.experiment import Experiment
    from assay_plugins.datasets.text_files import TextFiles
    from assay_plugins.models.transformer import Transformer
    from assay_plugins.objectives.next_token import NextToken
    from assay_plugins.optimizers.adamw import AdamW
    from assay_plugins.parallelism.data_parallel import DataParallel
    from assay_plugins.parallelism.fsdp import FSDP
    from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
    from assay_plugins.parallelism.tensor import Tensor
    from assay_plugins.schedules.cosine import Cosine
    from assay_plugins.tokenizers.byte import Bytes

    tokenizer: Any = Bytes()
    strategy: Any = {"dp": DataParallel, "fsdp": FSDP, "tp": Tensor, "fsdp+tp": FSDPTensor}[cell.strategy]
    return Experiment(
        model=Transformer(layers=2, width=32, heads=8, mlp_width=64, norm="layernorm", activation="gelu", dropout=0.1),
        dataset=TextFiles(files=str(folder / "corpus.txt"), tokenizer=tokenizer, context=16),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=Cosine(peak=3e-3, warmup_steps=5), clip_norm=1.0, weight_decay=0.1),
        parallelism=strategy(),
        trackers=(),
        steps=STEPS,
        batch_size=16,
        ema_decay=0.99,
        steps_per_dispatch=10,
        log_every=1,
        evaluate_splits=("validation",),
        evaluate_every=0,
        checkpoint_every=MOVED,
        keep_checkpoints=3,
    )


def main() -> int:
    """Train and move everything, print the table of worst differences, compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="where outcomes are kept; given again, only what is missing is done"
    )
    parser.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.jobs:
        try:
            return _work(json.loads(args.jobs.read_text()))
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # jax would wait for the other process, which waits for this one
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="topology-"))).absolute()
    trained: list[Job] = [(cell, None) for cell in CELLS]
    moved: list[Job] = [(cell, begun) for cell in CELLS for begun in CELLS]
    measure(folder, trained)
    measure(folder, moved)
    print(f"{'cell':<14} {'start':>6} {'stream':>6} {'losses':>8} {'eval':>8} | moved to it from {len(CELLS)}, worst")
    worst: dict[str, float] = {}
    for cell in CELLS:
        alone = differences(folder, (cell, None))
        all_moved = [differences(folder, (cell, begun)) for begun in CELLS]
        come = {name: max(each[name] for each in all_moved) for name in alone}
        for name in alone:
            worst[name] = max(worst.get(name, 0.0), alone[name], come[name])
        shown = [
            f"{d['start']:>6.3f} {d['stream']:>6.3f} {d['losses']:>8.1e} {d['evaluation']:>8.1e}" for d in (alone, come)
        ]
        print(f"{cell!s:<14} {shown[0]} | {shown[1]}")
    print(f"result: topology_cells {len(trained)} cells (target {len(CELLS)})")
    print(f"result: topology_moves {len(moved)} moves (target {len(CELLS) ** 2})")
    print(f"result: topology_start_differs {worst['start']:.4f} of arrays (target 0)")
    print(f"result: topology_stream_differs {worst['stream']:.4f} of batches (target 0)")
    print(f"result: topology_losses {worst['losses']:.1e} relative (target <= {TOLERANCE:.0e})")
    print(f"result: topology_evaluation {worst['evaluation']:.1e} relative (target <= {TOLERANCE:.0e})")
    held = not worst["start"] and not worst["stream"] and max(worst["losses"], worst["evaluation"]) <= TOLERANCE
    if held and not args.folder:
        shutil.rmtree(folder)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
