"""GPT-2 124M on one GPU by the project's own model, objective, optimizer and training step, with jax, flax and optax alone.

    python benchmarks/gpt2_gpu.py train --tokens train.bin --json gpt2_124m.json    # 64 steps of 524,288 tokens: losses, throughput
    python benchmarks/gpt2_gpu.py memory          # what `assay plan` predicts of the step's memory, and what it takes
    python benchmarks/gpt2_gpu.py deterministic   # what experiment.deterministic costs, and whether it holds
    python benchmarks/gpt2_gpu.py compile         # from the start of a process to its first step, without compiled programs and with them
    python benchmarks/gpt2_gpu.py train --smoke   # tiny, on any machine: that it runs, not what it says

The experiment is that of experiments/gpt2_124m.gin with 512 rows of 1,024 tokens in a batch and objective.next_token.fused_head.
Configuration files, checkpoints, trackers and the data pipeline take no part: those need more packages. What runs is the program that the
trainer runs (assay.plan.plan.jitted), one step a dispatch.

Tokens: --tokens FILE, uint16 as nanoGPT's train.bin has them or an .npy of integers; without it the bytes of tinyshakespeare.txt in
$ASSAY_DATA_DIR. Step i reads the rows that follow those of step i - 1, and the file again from its beginning. The losses are compared with
gpt2_124m_losses.json beside this script, if there is one of the same tokens and settings: an earlier --json of `train`.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bare
import numpy as np

TARGET, BAR = 540_000, 489_700  # tokens a second on one H200
LOSSES = Path(__file__).parent / "gpt2_124m_losses.json"
LOSS_TARGET = 0.01  # nats that a loss of the first 64 steps may be away from the stored one
FUSED = ("auto", None)
WARM = 3  # steps before the clock counts
SAID = "child: "


@dataclasses.dataclass(frozen=True)
class Size:
    """How large all is. rows: in a batch; accumulation: micro-batches of it."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    context: int = 1024
    vocab: int = 50257
    rows: int = 512
    accumulation: int = 16
    steps: int = 64


FULL, SMOKE = Size(), Size(1, 32, 2, 32, 512, 8, 2, 6)


class Tokens:
    """A dataset of consecutive rows of tokens."""

    def __init__(self, path: Path, size: Size) -> None:
        raw = (
            np.load(path)
            if path.suffix == ".npy"
            else np.fromfile(path, np.uint16 if path.suffix == ".bin" else np.uint8)
        )
        if raw.ndim != 1 or len(raw) <= size.context or int(raw.max()) >= size.vocab:
            raise SystemExit(f"{path}: must be more than {size.context} token ids below {size.vocab}, in one dimension")
        self._tokens, self._size, self.path = raw.astype(np.int32), size, path

    def spec(self) -> Any:
        """Rows of `inputs` and `targets`."""
        from assay.data.spec import ArraySpec, DataSpec

        row = ArraySpec((self._size.context,), "int32")
        return DataSpec(
            {"inputs": row, "targets": row}, self._size.vocab, units_per_example=self._size.context, unit="tokens"
        )

    def source(self, split: str) -> "Tokens":
        """The rows; there is one split."""
        return self

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._size.context

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = (index % len(self)) * self._size.context
        row = self._tokens[start : start + self._size.context + 1]
        return {"inputs": row[:-1], "targets": row[1:]}

    def fingerprint(self) -> str:
        """Digest of the tokens."""
        return hashlib.sha256(self._tokens.tobytes()).hexdigest()

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of a step, with an axis for the steps of a dispatch, here one."""
        rows = [self[step * self._size.rows + i] for i in range(self._size.rows)]
        found = {k: np.stack([row[k] for row in rows])[None] for k in rows[0]}
        return found | {"mask": np.ones((1, self._size.rows), bool)}


def configure(*, deterministic: bool = False) -> None:
    """As the command line does before it starts jax."""
    bare.without_jaxtyping()
    from assay import devices

    devices.configure(deterministic=deterministic)


def experiment(size: Size, tokens: Tokens, fused: str | None) -> Any:
    """The experiment; its model and optimizer are those of experiments/gpt2_124m.gin."""
    from assay.experiment import Experiment
    from assay_plugins.models.transformer import Transformer
    from assay_plugins.objectives.next_token import NextToken
    from assay_plugins.optimizers.adamw import AdamW
    from assay_plugins.parallelism.data_parallel import DataParallel
    from assay_plugins.schedules.cosine import Cosine

    model = Transformer(
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        norm="layernorm",
        position="learned",
        activation="gelu_tanh",
        tied_head=True,
        biases=True,
        vocab_multiple=128,
    )
    schedule = Cosine(peak=6e-4, warmup_steps=200, final=0.1, decay_steps=4000)
    return Experiment(
        model=model,
        dataset=tokens,
        objective=NextToken(fused_head=fused),
        optimizer=AdamW(learning_rate=schedule, b2=0.95, weight_decay=0.1, clip_norm=1.0),
        parallelism=DataParallel(),
        steps=4000,
        batch_size=size.rows,
        accumulation=size.accumulation,
        compute_dtype="bfloat16",
        steps_per_dispatch=1,
    )


class Training:
    """The experiment's step, compiled, and its state."""

    def __init__(self, size: Size, tokens: Tokens, fused: str | None) -> None:
        import jax

        from assay.plan.plan import jitted, make_plan, with_shardings
        from assay.train.kernels import Kernels

        self.plan = make_plan(experiment(size, tokens, fused), devices=jax.devices()[:1])
        self.tokens, self.size, self.done = tokens, size, 0
        shapes = {
            k: jax.ShapeDtypeStruct((1, *v.shape), v.dtype, sharding=self.plan.layout.batch(v.ndim, stacked=True))
            for k, v in self.plan.batch.items()
        }
        kernels = Kernels(lambda line: print(line, flush=True))
        state = with_shardings(self.plan.abstract, self.plan.shardings)
        self.program = kernels.compiled(jitted(self.plan, 1), state, shapes)
        self.choices = [choice.as_json() for choice in kernels.choices]
        self.state: Any = None

    def predicted(self) -> int:
        """Bytes at the peak, as `assay plan` reports them."""
        from assay.plan.report import program_memory

        return program_memory(self.program)["peak"]

    def draw(self) -> None:
        """The state before the first step."""
        import jax

        from assay.train.state import initial_state

        e, network, optimizer = self.plan.experiment, self.plan.network, self.plan.optimizer
        self.state = jax.jit(lambda: initial_state(e, network, optimizer), out_shardings=self.plan.shardings)()

    def losses(self, steps: int) -> Iterator[tuple[float, float]]:
        """(loss, time at which it was known) of each of the next steps; the device is never left waiting for the host."""
        import jax

        waiting = None
        for _ in range(steps):
            batch = {
                k: jax.device_put(v, self.plan.layout.batch(v.ndim - 1, stacked=True))
                for k, v in self.tokens.batch(self.done).items()
            }
            self.state, metrics = self.program(self.state, batch)
            self.done += 1
            if waiting is not None:
                yield float(waiting[0]), time.perf_counter()
            waiting = metrics["loss"]
        if waiting is not None:
            yield float(waiting[0]), time.perf_counter()


class Log:
    """A stage's figures as JSON, written again whenever there are more, and its result lines."""

    def __init__(self, stage: str, args: argparse.Namespace) -> None:
        self.path, self.good = args.json, True
        self.found: dict[str, Any] = {"complete": False, "stage": stage, "smoke": args.smoke, "results": []}
        self.found |= {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": dataclasses.asdict(args.size),
        }
        self.write()

    def note(self, **facts: Any) -> None:
        """Add facts."""
        self.found |= facts
        self.write()

    def write(self) -> None:
        """Replace the file."""
        if self.path:
            beside = self.path.with_name(self.path.name + ".part")
            beside.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            beside.replace(self.path)

    def result(self, name: str, value: str, target: str, holds: bool = True) -> None:
        """Print a result line; the stage fails where it does not hold."""
        line = f"result: {name} {value} ({target})"
        print(line, flush=True)
        self.good &= holds
        self.found["results"].append(line)
        self.write()

    def end(self) -> int:
        """The exit status of a stage that came to its end."""
        self.note(complete=True)
        return 0 if self.good else 1


def about() -> dict[str, Any]:
    """Device and versions; starts jax."""
    import jax

    device = jax.devices()[0]
    found = {"platform_version": device.client.platform_version.replace("\n", "; ")}
    for name in ("jax", "jaxlib", "flax", "optax", "jax-cuda13-plugin", "nvidia-cudnn-cu13"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"device": device.device_kind, "versions": found}


def train(args: argparse.Namespace) -> int:
    """64 steps: their losses and their time."""
    log = Log("gpt2_124m", args)
    if args.compiled:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(args.compiled)
    configure()
    log.note(**about(), tokens={"file": args.tokens.name, "sha256": Tokens(args.tokens, args.size).fingerprint()})
    training = Training(args.size, Tokens(args.tokens, args.size), args.fused_head)
    log.note(kernels=training.choices, predicted_bytes=training.predicted())
    training.draw()
    losses, times = list[float](), list[float]()
    for loss, now in training.losses(args.size.steps):
        losses.append(loss)
        times.append(now)
        if len(losses) % 8 == 0 or len(losses) == args.size.steps:
            print(f"step {len(losses)}  loss {loss:.4f}", flush=True)
            log.note(losses=losses)
    seconds = [b - a for a, b in itertools.pairwise(times[WARM - 1 :])]
    per_step = statistics.fmean(seconds)
    rate = args.size.rows * args.size.context / per_step
    log.note(step_seconds=seconds, tokens_per_second=rate, flops_per_step=training.plan.flops_per_step)
    if training.plan.peak_flops:
        log.note(mfu=training.plan.flops_per_step / per_step / training.plan.peak_flops)
    asked = log.found["device"] == "NVIDIA H200" and not args.smoke
    log.result(
        "gpt2_124m_throughput",
        f"{rate:,.0f} tokens/s, steps of {per_step:.4f} s ({min(seconds):.4f} to {max(seconds):.4f})",
        f"target >= {TARGET:,}, bar >= {BAR:,} on an H200" + ("" if asked else "; not asked of this run"),
        rate >= BAR or not asked,
    )
    compare_losses(log, args)
    return log.end()


def compare_losses(log: Log, args: argparse.Namespace) -> None:
    """With the stored ones, if there are any of the same tokens and settings."""
    if not args.losses.exists():
        print(f"losses: {args.losses.name} is not there, nothing to compare with")
        return
    stored = json.loads(args.losses.read_text(encoding="utf-8"))
    if (stored["tokens"]["sha256"], stored["settings"]) != (log.found["tokens"]["sha256"], log.found["settings"]):
        print(f"losses: {args.losses.name} is of other tokens or settings, nothing to compare with")
        return
    apart = max(abs(a - b) for a, b in zip(stored["losses"], log.found["losses"], strict=True))
    log.result(
        "gpt2_124m_losses",
        f"{apart:.2e} nats, the largest of {len(stored['losses'])}",
        f"target <= {LOSS_TARGET}",
        apart <= LOSS_TARGET,
    )


def memory(args: argparse.Namespace) -> int:
    """Predicted against measured, with the fused head and without; each in a process of its own, whose program is compiled already."""
    log = Log("memory", args)
    rows: list[dict[str, Any]] = []
    with kept(args) as folder:
        for fused in FUSED if args.both else FUSED[:1]:
            child(args, folder, fused_head=fused, steps=0)  # compiling tries algorithms out, which takes memory as well
            found = child(args, folder, fused_head=fused, steps=3)
            rows.append(
                {"fused_head": fused, **{k: found[k] for k in ("predicted_bytes", "measured_bytes", "limit_bytes")}}
            )
            log.note(rows=rows, **found["about"])
            predicted, measured = found["predicted_bytes"], found["measured_bytes"]
            shown = (
                "not measured on this device" if measured is None else f"{predicted / measured:.3f} x the measured peak"
            )
            log.result(f"memory_prediction_{fused}", f"{shown}, {predicted / 2**30:.3f} GiB predicted", "no target")
    return log.end()


def deterministic(args: argparse.Namespace) -> int:
    """In turns with experiment.deterministic's flags and without, in new processes."""
    log = Log("deterministic", args)
    ends: dict[bool, list[Any]] = {True: [], False: []}
    ratios: list[float] = []
    rows: list[dict[str, Any]] = []
    with kept(args) as folder:
        for i in range(args.rounds):
            seconds = {}
            for kind in (True, False) if i % 2 else (False, True):
                found = child(args, folder, fused_head=args.fused_head, steps=args.steps, deterministic=kind)
                seconds[kind] = statistics.median(found["step_seconds"])
                ends[kind].append(found["digests"])
                rows.append({"deterministic": kind, "step_seconds": found["step_seconds"], "losses": found["losses"]})
                log.note(rows=rows, **found["about"])
            ratios.append(seconds[True] / seconds[False])
            print(f"  deterministic {seconds[True]:.4f} s a step, else {seconds[False]:.4f} s", flush=True)
    alike = {kind: sum(end == found[0] for end in found) for kind, found in ends.items()}
    log.note(ratios=ratios, alike={str(kind): count for kind, count in alike.items()})
    print(f"  without it {alike[False]} of {args.rounds} runs ended alike")
    log.result("deterministic_cost_gpt2", f"{statistics.median(ratios):.3f} x the step time", "no target")
    log.result(
        "deterministic_identical_gpt2",
        f"{alike[True]} of {args.rounds} runs",
        f"target {args.rounds}",
        alike[True] == args.rounds,
    )
    return log.end()


def compiled(args: argparse.Namespace) -> int:
    """From a new process to its first step, with an empty folder of compiled programs and with what that left."""
    log = Log("compile", args)
    rows: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="compile-") as folder:
            began = time.time()
            cold = child(args, folder, fused_head=args.fused_head, steps=1)
            between = time.time()
            warm = child(args, folder, fused_head=args.fused_head, steps=1)
        row = {"cold_seconds": cold["first_step"] - began, "warm_seconds": warm["first_step"] - between}
        rows.append(row | {"losses": [cold["losses"][0], warm["losses"][0]]})
        log.note(rows=rows, **cold["about"])
        print(f"  cold {row['cold_seconds']:.1f} s, warm {row['warm_seconds']:.1f} s", flush=True)
    ratio = statistics.median(r["warm_seconds"] / r["cold_seconds"] for r in rows)
    log.result("compile_warm_gpt2", f"{ratio:.3f} of a cold start", "no target")
    same = all(r["losses"][0] == r["losses"][1] for r in rows)
    log.result(
        "compile_same_loss_gpt2", f"{'the same' if same else 'other'} bits from a kept program", "target the same", same
    )
    return log.end()


@contextlib.contextmanager
def kept(args: argparse.Namespace) -> Iterator[str]:
    """The folder for compiled programs: what is asked for, or one for the time being."""
    if args.compiled:
        yield str(args.compiled)
        return
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        yield folder


def child(
    args: argparse.Namespace, folder: str, *, fused_head: str | None, steps: int, deterministic: bool = False
) -> dict[str, Any]:
    """What a new process found that trained `steps` steps; compiled programs are in `folder`. Raises SystemExit where it failed."""
    command = [sys.executable, __file__, "child", "--tokens", str(args.tokens), "--steps", str(steps)]
    command += ["--fused-head", str(fused_head)] + ["--smoke"] * args.smoke + ["--deterministic"] * deterministic
    command += ["--micro-batch", str(args.size.rows // args.size.accumulation)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith(SAID)]
    if done.returncode or not said:
        raise SystemExit(f"a process failed: {' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(said[-1].removeprefix(SAID))


def work(args: argparse.Namespace) -> int:
    """What a child does."""
    configure(deterministic=args.deterministic)
    training = Training(args.size, Tokens(args.tokens, args.size), args.fused_head)
    found: dict[str, Any] = {
        "predicted_bytes": training.predicted(),
        "about": about(),
        "losses": [],
        "first_step": None,
    }
    times: list[float] = []
    if args.steps:
        training.draw()
    for loss, now in training.losses(args.steps):
        found["first_step"] = found["first_step"] or time.time()
        found["losses"].append(loss)
        times.append(now)
    import jax

    from assay.checkpoint.digests import digests

    stats: Mapping[str, int] = jax.devices()[0].memory_stats() or {}
    found["measured_bytes"], found["limit_bytes"] = stats.get("peak_bytes_in_use"), stats.get("bytes_limit")
    found["step_seconds"] = [b - a for a, b in itertools.pairwise(times[1:])]
    found["digests"] = digests(training.state) if args.steps else {}
    print(SAID + json.dumps(found))
    return 0


def main() -> int:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {"train": train, "memory": memory, "deterministic": deterministic, "compile": compiled, "child": work}
    parser.add_argument("stage", choices=stages, metavar="STAGE", help="train, memory, deterministic or compile")
    parser.add_argument("--tokens", type=Path, help="token ids: .bin (uint16), .npy, or any other file for its bytes")
    parser.add_argument("--micro-batch", type=int, help="rows computed at once (default 32)")
    parser.add_argument("--fused-head", default="auto", help="as objective.next_token.fused_head (default auto)")
    parser.add_argument("--steps", type=int, help="of train (default 64), of deterministic (default 8)")
    parser.add_argument("--rounds", type=int, default=2, help="of deterministic and compile")
    parser.add_argument("--both", action="store_true", help="memory without the fused head too")
    parser.add_argument(
        "--compiled", type=Path, help="folder of compiled programs, for train, memory and deterministic"
    )
    parser.add_argument("--losses", type=Path, default=LOSSES, help="stored losses to compare with")
    parser.add_argument("--json", type=Path, help="where to write all figures; written anew whenever there are more")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model and few steps: that it runs, not what it says"
    )
    parser.add_argument("--deterministic", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.fused_head = None if args.fused_head == "None" else args.fused_head
    args.size = SMOKE if args.smoke else FULL
    if args.stage == "train" and args.steps:
        args.size = dataclasses.replace(args.size, steps=args.steps)
    if args.stage == "deterministic" and args.steps is None:
        args.steps = 4 if args.smoke else 8
    if args.stage == "train" and args.size.steps <= WARM:
        parser.error(f"--steps must be more than {WARM}")
    args.tokens = args.tokens or Path(os.environ.get("ASSAY_DATA_DIR", ".")) / "tinyshakespeare.txt"
    if not args.tokens.exists():
        parser.error(
            f"{args.tokens} is not there: give --tokens FILE, or set ASSAY_DATA_DIR to a folder with tinyshakespeare.txt"
        )
    if args.micro_batch:
        if args.size.rows % args.micro_batch:
            parser.error(f"--micro-batch must divide {args.size.rows}")
        args.size = dataclasses.replace(args.size, accumulation=args.size.rows // args.micro_batch)
    return stages[args.stage](args)


if __name__ == "__main__":
    sys.exit(main())
