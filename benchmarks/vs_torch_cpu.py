"""Training speed of experiments/lm_shakespeare_shape.gin against the same model in PyTorch, eager and compiled, on this CPU.

The trainers take turns of some steps each; a result is the median over rounds of torch's seconds over Assay's. PyTorch runs in an
environment of its own (torch_nanogpt.py there), since it is no dependency of Assay. Beside the two that the targets name, torch takes
turns with its fused AdamW, and with the matrix products of a step alone: torch's seconds over those bound what any trainer can reach
that multiplies no faster than torch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax

from assay import config, devices
from assay.data.pipeline import train_batches
from assay.plan.plan import jitted, make_plan
from assay.train.feed import local_rows, stack, to_devices
from assay.train.state import initial_state

TARGETS = {"eager": 1.5, "compile": 1.3}
OTHERS = ("eager_fused", "compile_fused", "products")
REQUIREMENTS = ("torch==2.13.0", "numpy")
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "lm_shakespeare_shape.gin"


class Ours:
    """The framework's dispatch and data pipeline, as the Trainer uses them."""

    def __init__(self, text: Path) -> None:
        loaded = config.load(EXPERIMENT, [f"dataset.text_files.files={text}"])
        plan = make_plan(loaded.experiment, loaded.where)
        e = plan.experiment
        rows = local_rows(plan.layout, e.batch_size)
        source = e.dataset.source("train")
        self._batches = train_batches(
            source, batch_size=e.batch_size, seed=e.seed, rows=rows, prefetch=e.prefetch, workers=e.workers
        )
        self._dispatch = jitted(plan, plan.steps_per_dispatch)
        self._state = jax.jit(lambda: initial_state(e, plan.network, plan.optimizer), out_shardings=plan.shardings)()
        self.steps_per_dispatch, self._layout = plan.steps_per_dispatch, plan.layout

    def train(self, steps: int) -> float:
        """Do `steps` updates. Returns the last loss, in nats."""
        for _ in range(steps // self.steps_per_dispatch):
            batches = stack([next(self._batches) for _ in range(self.steps_per_dispatch)])
            batch = to_devices(self._layout, batches, stacked=True)
            self._state, metrics = self._dispatch(self._state, batch)
        jax.block_until_ready(self._state)
        return float(metrics["loss"][-1])

    def close(self) -> None:
        """Stop reading ahead."""
        self._batches.close()


class Torch:
    """torch_nanogpt.py in its interpreter."""

    def __init__(self, python: Path, mode: str, text: Path) -> None:
        script = Path(__file__).with_name("torch_nanogpt.py")
        command = [str(python), str(script), mode, "--text", str(text)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(f"{mode}: {self._answer()}", flush=True)

    def train(self, steps: int) -> tuple[float, float]:
        """(seconds, last loss) of `steps` updates."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        seconds, loss = self._answer().split()
        return float(seconds), float(loss)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"the torch process ended with status {self._process.wait()}; its message is above")
        return line


def main() -> int:
    """Measure in turns; 0 when both targets hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt (default: in ASSAY_DATA_DIR)")
    parser.add_argument("--torch-python", type=Path, help="an interpreter with torch (default: one made in the cache)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200, help="of a turn; rounded down to whole dispatches")
    args = parser.parse_args()
    text = args.text or Path(os.environ.get("ASSAY_DATA_DIR", ".")) / "tinyshakespeare.txt"
    devices.configure()
    python = args.torch_python or torch_environment()
    ours = Ours(text)
    theirs = {mode: Torch(python, mode, text) for mode in (*TARGETS, *OTHERS)}
    steps = args.steps - args.steps % ours.steps_per_dispatch
    ours.train(max(steps // 4, ours.steps_per_dispatch))
    ratios: dict[str, list[float]] = {mode: [] for mode in theirs}
    bounds: dict[str, list[float]] = {mode: [] for mode in TARGETS}
    for number in range(args.rounds):
        start = time.perf_counter()
        loss = ours.train(steps)
        seconds = time.perf_counter() - start
        parts = [f"assay {seconds / steps * 1e3:.2f} ms (loss {loss:.3f})"]
        others: dict[str, float] = {}
        for mode, torch in theirs.items():
            others[mode], loss = torch.train(steps)
            ratios[mode].append(others[mode] / seconds)
            parts.append(f"{mode} {others[mode] / steps * 1e3:.2f} ms" + (f" (loss {loss:.3f})" if loss else ""))
        for mode in TARGETS:
            bounds[mode].append(others[mode] / others["products"])
        print(f"  round {number}: a step takes {', '.join(parts)}; load {os.getloadavg()[0]:.1f}", flush=True)
    ours.close()
    for torch in theirs.values():
        torch.close()
    medians = {mode: statistics.median(values) for mode, values in ratios.items()}
    for mode in OTHERS:
        print(f"{mode}: {medians[mode]:.3f} x the seconds of Assay")
    for mode in TARGETS:
        print(f"bound by the products alone, {mode}: {statistics.median(bounds[mode]):.3f} x")
    for mode, target in TARGETS.items():
        print(f"result: speed_vs_torch_{mode} {medians[mode]:.3f} x (target >= {target})")
    return 0 if all(medians[mode] >= target for mode, target in TARGETS.items()) else 1


def torch_environment() -> Path:
    """The interpreter of an environment with torch in the user's cache, made when it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "assay" / "-".join(["bench", REQUIREMENTS[0].replace("==", "-")])
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        ready.touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
