"""Mamba-2 beside the transformer at equal parameters, both trained by the framework.

The experiments are lm_code_ssm.gin and lm_code.gin, which must differ in the model and the peak of the learning rate alone: data, steps,
batch, optimizer and seeds are the same. Each has the best peak of PEAKS for it, as `--peaks` shows. The losses are over the whole
validation split.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from assay import config, devices
from assay.table import table

EXPERIMENTS = {"transformer": "lm_code.gin", "mamba2": "lm_code_ssm.gin"}
FOLDER = Path(__file__).parent.parent / "experiments"
OVERRIDES = ("experiment.trackers=[]", "experiment.sample_every=0", "experiment.checkpoint_every=0")
PEAK, PEAKS = "schedule.cosine.peak", (2e-3, 4e-3, 8e-3)
PARAMETER_TARGET, LOSS_TARGET = 1.0, 0.0


@dataclasses.dataclass(frozen=True)
class Trained:
    """One run. losses: over the validation split, by step. rate: tokens per second of training, the median over the run."""

    parameters: int
    flops_per_token: float
    losses: dict[int, float]
    bits_per_byte: float
    rate: float


def main() -> int:
    """Train both for each seed, print the table; 0 when the parameters are equal and the loss is no higher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peaks", action="store_true", help="print the loss of both at every learning rate instead")
    args = parser.parse_args()
    devices.configure()
    if args.peaks:
        for name in EXPERIMENTS:
            losses = [trained(name, args.steps, 0, f"{PEAK}={peak}").losses[args.steps] for peak in PEAKS]
            print(name, ", ".join(f"{peak:g}: {loss:.4f}" for peak, loss in zip(PEAKS, losses, strict=True)))
        return 0
    runs = [{name: trained(name, args.steps, seed) for name in EXPERIMENTS} for seed in range(args.seeds)]
    steps = sorted(runs[0]["mamba2"].losses)
    print(table([_head(steps), *(_row(name, steps, [run[name] for run in runs]) for name in EXPERIMENTS)]))
    ours, theirs = runs[0]["mamba2"], runs[0]["transformer"]
    apart = 100 * abs(ours.parameters / theirs.parameters - 1)
    gaps = [run["mamba2"].losses[args.steps] - run["transformer"].losses[args.steps] for run in runs]
    gap = statistics.fmean(gaps)
    print(f"loss apart, by seed: {', '.join(f'{g:+.4f}' for g in gaps)} nats")
    print(f"result: ssm_parameters_apart {apart:.2f} % (target <= {PARAMETER_TARGET})")
    print(f"result: ssm_loss_above_transformer {gap:+.4f} nats (target <= {LOSS_TARGET})", flush=True)
    return 0 if apart <= PARAMETER_TARGET and gap <= LOSS_TARGET else 1


def trained(name: str, steps: int, seed: int, *further: str) -> Trained:
    """A run of the experiment called `name`, evaluated four times."""
    from assay.plan.plan import make_plan
    from assay.runs import read_metrics
    from assay.train.launch import start

    given = [f"STEPS={steps}", f"experiment.seed={seed}", f"experiment.evaluate_every={max(1, steps // 4)}"]
    loaded = config.load(FOLDER / EXPERIMENTS[name], [*given, *OVERRIDES, *further])
    _check_alike(loaded, config.load(FOLDER / EXPERIMENTS["transformer"], [*given, *OVERRIDES, *further]))
    plan = make_plan(loaded.experiment, loaded.where)
    with tempfile.TemporaryDirectory() as root:
        finished = start(loaded, Path(root))
        rows = read_metrics(finished.run.path / "metrics.jsonl")
    if finished.status != "completed":  # an interrupted run has a loss too, of too few steps
        raise SystemExit(f"{name}: {finished.status} at step {finished.step}; there is no result")
    return Trained(
        plan.network.parameter_count,
        plan.flops_per_step / plan.units_per_step,
        {int(row["step"]): float(row["loss"]) for row in rows if row["context"] == "validation"},
        finished.values["validation/bits_per_byte"],
        statistics.median(float(row["tokens_per_second"]) for row in rows if "tokens_per_second" in row),
    )


def _check_alike(one: config.Loaded, two: config.Loaded) -> None:
    """End unless the experiments differ in the model and the learning rate alone."""
    first, second = (_without_model(loaded.values) for loaded in (one, two))
    different = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    if different:
        raise SystemExit(
            f"{one.path} and {two.path} differ in {', '.join(different)}; make them equal but for model and learning rate"
        )


def _without_model(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if "model" not in key.split(".") and key != PEAK}


def _head(steps: list[int]) -> list[str]:
    losses = [f"loss at {step}" for step in steps]
    return ["model", "parameters", "MFLOPs/token", *losses, "bits/byte", "tokens/s"]


def _row(name: str, steps: list[int], runs: list[Trained]) -> list[str]:
    """Means over the seeds."""
    losses = [f"{statistics.fmean(run.losses[step] for run in runs):.4f}" for step in steps]
    bits, rate = (statistics.fmean(getattr(run, field) for run in runs) for field in ("bits_per_byte", "rate"))
    size = [f"{runs[0].parameters:,}", f"{runs[0].flops_per_token / 1e6:.2f}"]
    return [name, *size, *losses, f"{bits:.4f}", f"{rate:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
