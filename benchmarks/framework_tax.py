"""Training speed of the framework's loop against a loop written by hand, in turns in one process.

The framework's side is a Trainer with a run directory, the installed trackers, evaluation of the whole validation split and a
checkpoint at the end of every chunk; its clock runs until the checkpoint and the log are on disk. The other side has the same
network, the same optimizer out of optax, as many steps to a dispatch, random windows from numpy and an evaluation of the same split
at the end of every chunk; it logs nothing and saves nothing. The first chunk of both compiles and is not counted.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from assay import config, devices, runs
from assay.plan.plan import Plan, make_plan
from assay.track import Fanout, installed_trackers
from assay.train.interrupt import StopRequest
from assay.train.loop import Trainer
from assay.train.progress import Progress

TARGET = 1.03
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "lm_shakespeare_shape.gin"
EVALUATION_ROWS = 120


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model size: steps in a chunk, and what differs from the experiment's file."""

    chunk: int
    overrides: Sequence[str]


SETTINGS = {
    "small": Setting(500, ()),
    "10m": Setting(
        100,
        (
            "model.transformer.layers=6",
            "model.transformer.width=384",
            "model.transformer.heads=6",
            "dataset.text_files.validation_fraction=0.01",
        ),
    ),
}


class ByHand:
    """The loop that a researcher would write for this model alone."""

    def __init__(self, plan: Plan, text: Path) -> None:
        e = plan.experiment
        self._scan, self._rows = plan.steps_per_dispatch, e.batch_size
        self._context = int(plan.batch["inputs"].shape[1])
        characters = text.read_text(encoding="utf-8")
        index = {character: i for i, character in enumerate(sorted(set(characters)))}
        tokens = np.array([index[character] for character in characters], np.int32)
        cut = int(len(tokens) * (1 - validation_fraction(plan)))
        self._train, self._validation = tokens[:cut], tokens[cut:]
        self._rng = np.random.default_rng(0)
        graph, self._params = nnx.split(e.model.build(plan.spec, nnx.Rngs(0)))
        rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, e.steps, 1e-4)
        mask = jax.tree.map(lambda x: x.ndim >= 2, self._params)
        adamw = optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=0.1, mask=mask)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
        self._optimizer_state = jax.jit(optimizer.init)(self._params)

        def losses(params: Any, windows: jax.Array) -> jax.Array:
            model: Any = nnx.merge(graph, params)
            logits = model({"inputs": windows[:, :-1]}, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])

        def step(carry: tuple[Any, Any], windows: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            params, state = carry
            loss, gradients = jax.value_and_grad(lambda p: jnp.mean(losses(p, windows)))(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        self._steps = jax.jit(lambda carry, windows: jax.lax.scan(step, carry, windows), donate_argnums=0)
        self._sum = jax.jit(lambda params, windows: jnp.sum(losses(params, windows)))

    def chunk(self, steps: int) -> float:
        """Do `steps` updates and evaluate. Returns the validation loss, in nats."""
        for _ in range(steps // self._scan):
            starts = self._rng.integers(0, len(self._train) - self._context, (self._scan, self._rows))
            windows = self._train[starts[..., None] + np.arange(self._context + 1)]
            (self._params, self._optimizer_state), _ = self._steps((self._params, self._optimizer_state), windows)
        return self._evaluate()

    def _evaluate(self) -> float:
        starts = np.arange(0, len(self._validation) - self._context, self._context)
        total = 0.0
        for i in range(0, len(starts), EVALUATION_ROWS):
            rows = starts[i : i + EVALUATION_ROWS]
            total += float(self._sum(self._params, self._validation[rows[:, None] + np.arange(self._context + 1)]))
        return total / (len(starts) * self._context)


class Alternate:
    """A callback, the last of all: stops the framework's clock after a chunk, and has the other loop do as many steps."""

    def __init__(self, by_hand: ByHand, chunk: int) -> None:
        self.framework: list[float] = []
        self.by_hand: list[float] = []
        self._other, self._chunk, self._since = by_hand, chunk, time.perf_counter()

    def due(self, step: int) -> bool:
        """At the end of each chunk."""
        return step % self._chunk == 0

    def act(self, trainer: Trainer, step: int) -> None:
        """Wait for all that the framework has begun; then the other loop's turn."""
        jax.block_until_ready(trainer.state)
        trainer.checkpoints.wait()
        trainer.tracking.flush()
        self.framework.append(time.perf_counter() - self._since)
        start = time.perf_counter()
        loss = self._other.chunk(self._chunk)
        self.by_hand.append(time.perf_counter() - start)
        ours = trainer.evaluated["validation/loss"]
        print(
            f"  step {step}: framework {self.framework[-1]:.2f} s (validation {ours:.3f}), "
            f"by hand {self.by_hand[-1]:.2f} s (validation {loss:.3f}); load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        self._since = time.perf_counter()


def main() -> int:
    """Measure each setting; 0 when all ratios are within the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt (default: in ASSAY_DATA_DIR)")
    parser.add_argument("--setting", choices=sorted(SETTINGS), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=7, help="chunks that count, of each loop")
    args = parser.parse_args()
    text = args.text or Path(os.environ.get("ASSAY_DATA_DIR", ".")) / "tinyshakespeare.txt"
    devices.configure()
    held = [measure(name, text, args.rounds) <= TARGET for name in args.setting or SETTINGS]
    return 0 if all(held) else 1


def measure(name: str, text: Path, rounds: int) -> float:
    """The median over rounds of the framework's seconds over the other loop's, printed."""
    setting = SETTINGS[name]
    chunk = setting.chunk
    settings = {
        "dataset.text_files.files": text,
        "experiment.steps": chunk * (rounds + 1),
        "experiment.evaluate_every": chunk,
        "experiment.checkpoint_every": chunk,
    }
    loaded = config.load(EXPERIMENT, [*(f"{key}={value}" for key, value in settings.items()), *setting.overrides])
    plan = make_plan(loaded.experiment, loaded.where)
    tokens = plan.units_per_step * chunk
    print(f"{name}: {plan.network.parameter_count / 1e6:.2f}M parameters, {plan.steps_per_dispatch} steps a dispatch")
    with tempfile.TemporaryDirectory() as root:
        times = alternate(plan, Alternate(ByHand(plan, text), chunk), Path(root))
    framework, by_hand = times.framework[1:], times.by_hand[1:]
    ratios = [a / b for a, b in zip(framework, by_hand, strict=True)]
    rates = f"{tokens / statistics.median(framework):.0f} and {tokens / statistics.median(by_hand):.0f} tokens/s"
    print(f"  {rates}; ratios {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    median = statistics.median(ratios)
    print(f"result: framework_tax_{name} {median:.3f} x (target <= {TARGET})", flush=True)
    return median


def alternate(plan: Plan, times: Alternate, root: Path) -> Alternate:
    """Train a run of `plan` below `root`, with everything on that a run has on by default."""
    run = runs.create(root, "framework_tax")
    progress = Progress(plan.experiment.steps, plan.spec.unit)
    with run.session() as session:
        tracking = Fanout(run, installed_trackers(progress.line), report=progress.line)
        trainer = Trainer(plan, run, tracking, progress, {})
        trainer.callbacks.append(times)
        try:
            session.exit = trainer.train(trainer.begin(), StopRequest())
        finally:
            trainer.close()
            tracking.finish("completed")
        session.step = trainer.step
    if session.exit != "completed":
        raise SystemExit(f"{session.exit} at step {trainer.step}; there is no result")
    return times


def validation_fraction(plan: Plan) -> float:
    """The share of the text that the experiment's dataset holds out."""
    dataset: Any = plan.experiment.dataset
    return float(dataset.validation_fraction)


if __name__ == "__main__":
    sys.exit(main())
