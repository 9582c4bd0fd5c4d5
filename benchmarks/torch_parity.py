"""Training of experiments/lm_shakespeare_shape.gin against a plain PyTorch trainer, from the same parameters on the same batches.

Every loss of the run is compared: model, gradients, clipping, AdamW, weight decay and the learning rate of each step are in it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from vs_torch_cpu import EXPERIMENT, torch_environment

from assay import config, devices
from assay.data.pipeline import train_batches
from assay.plan.plan import Plan, jitted, make_plan
from assay.train.feed import local_rows, stack, to_devices
from assay.train.state import initial_state

TARGET = 1e-4
LAYERS, WIDTH = 4, 128


def main() -> int:
    """Train here, replay in PyTorch, compare; 0 when every loss agrees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt (default: in ASSAY_DATA_DIR)")
    parser.add_argument("--torch-python", type=Path, help="an interpreter with torch (default: one made in the cache)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    text = args.text or Path(os.environ.get("ASSAY_DATA_DIR", ".")) / "tinyshakespeare.txt"
    devices.configure()
    python = args.torch_python or torch_environment()
    loaded = config.load(EXPERIMENT, [f"dataset.text_files.files={text}", f"experiment.seed={args.seed}"])
    arrays, losses = trained(make_plan(loaded.experiment, loaded.where))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.npz"
        np.savez(path, allow_pickle=False, **arrays)
        script = Path(__file__).with_name("torch_nanogpt.py")
        command = [str(python), str(script), "replay", "--text", str(text), "--arrays", str(path)]
        subprocess.run(command, check=True)
        theirs = np.load(path.with_suffix(".npy"))
    gaps = np.abs(losses - theirs)
    for step in (0, 1, 10, 100, 1000, len(losses) - 1):
        print(
            f"  step {step}: {losses[step]:.6f} here, {theirs[step]:.6f} in PyTorch; largest gap so far {gaps[: step + 1].max():.1e}"
        )
    print(f"result: torch_parity_loss {gaps.max():.1e} nats (target <= {TARGET:.0e})")
    return 0 if gaps.max() <= TARGET else 1


def trained(plan: Plan) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(initial parameters by PyTorch's names, and all batches; the loss of every step) of a whole run."""
    e = plan.experiment
    state = jax.jit(lambda: initial_state(e, plan.network, plan.optimizer), out_shardings=plan.shardings)()
    arrays = named(jax.device_get(state.params))
    source, rows = e.dataset.source("train"), local_rows(plan.layout, e.batch_size)
    batches = train_batches(source, batch_size=e.batch_size, seed=e.seed, rows=rows, prefetch=4, workers=0)
    dispatch, seen, losses = jitted(plan, plan.steps_per_dispatch), [], []
    for _ in range(e.steps // plan.steps_per_dispatch):
        seen.append(stack([next(batches) for _ in range(plan.steps_per_dispatch)]))
        state, metrics = dispatch(state, to_devices(plan.layout, seen[-1], stacked=True))
        losses.append(np.asarray(metrics["loss"]))
    batches.close()
    both = {name: np.concatenate([batch[name] for batch in seen]) for name in ("inputs", "targets")}
    return arrays | both, np.concatenate(losses)


def named(params: Any) -> dict[str, np.ndarray]:
    """The parameters under the names and in the layout of torch_nanogpt.GPT, whose kernels are (outputs, inputs)."""
    found = {f"{name}.weight": np.asarray(params[name]["embedding"]) for name in ("tokens", "positions")}
    found["norm.weight"] = np.asarray(params["norm"]["scale"])
    for i in range(LAYERS):
        block, to = params["blocks"][str(i)], f"blocks.{i}"
        attention, mlp = block["attention"], block["mlp"]
        joined = [attention[part]["kernel"].reshape(WIDTH, WIDTH) for part in ("query", "key", "value")]
        found[f"{to}.qkv.weight"] = np.concatenate(joined, axis=1).T
        found[f"{to}.out.weight"] = attention["out"]["kernel"].reshape(WIDTH, WIDTH).T
        found |= {f"{to}.{part}.weight": mlp[part]["kernel"].T for part in ("up", "down")}
        found[f"{to}.norm1.weight"] = np.asarray(block["attention_norm"]["scale"])
        found[f"{to}.norm2.weight"] = np.asarray(block["mlp_norm"]["scale"])
    return found


if __name__ == "__main__":
    sys.exit(main())
