"""Samples of the two diffusion experiments on digits, judged by the vision transformer of experiments/digits_vit.gin.

For each of digits_edm.gin and digits_dit.gin: the share of guided samples that the classifier reads as the digit that was asked for, its
confidence beside that on real held-out scans, and the Frechet distance (Heusel et al. 2017, arXiv:1706.08500, eq. 6, with the classifier's
penultimate features in place of Inception's) between unguided samples and the training scans, by the number of sampling steps.
Three trainings, about ten minutes on two cores. Runs that are complete in --root are taken as they are.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay import config, devices
from assay.runs.directory import RunDirectory, run_directories

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
STEPS = (2, 4, 8, 16, 32)
SEED = 1
CLASSES = 10
BINS = 10

Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images -> (features (images, width), probabilities (images, classes))."""


def main() -> int:
    """Train what is not there yet, draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/diffusion_digits"), help="where the runs are kept")
    parser.add_argument("--per-class", type=int, default=50, help="guided samples of each digit (default: 50)")
    parser.add_argument("--only", choices=("digits_edm", "digits_dit"), help="one of the two experiments")
    args = parser.parse_args()
    devices.configure()
    dataset = config.load(EXPERIMENTS / "digits_vit.gin").experiment.dataset
    real = {split: _all(dataset.source(split)) for split in ("train", "validation")}
    judge = _judge(*_trained("digits_vit", args.root)[:2])
    truth, held_out = judge(real["train"]["image"])[0], judge(real["validation"]["image"])
    accuracy, confidence = _read(held_out[1], real["validation"]["label"])
    print(f"result: digits_vit_accuracy {accuracy:.4f} share (confidence {confidence:.4f}, real held-out scans)")
    print(f"result: digits_frechet_floor {frechet(truth, held_out[0]):.4f} distance (training to held-out scans)")
    names = [args.only] if args.only else ["digits_edm", "digits_dit"]
    good = [_experiment(name, args, judge, truth, held_out[1], real["train"]["label"]) for name in names]
    return 0 if all(good) else 1


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) of two sets of features (items, width)."""
    means, covariances = [x.mean(0) for x in (a, b)], [np.cov(x, rowvar=False) for x in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0.0)).sum()
    return float(np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross)


def matched(correct: np.ndarray, confidence: np.ndarray, real: np.ndarray) -> float:
    """The share of `correct` samples were they as confident as `real` ones: by tenths of the real confidences, weighted equally.

    A tenth without any sample is left out.
    """
    edges = np.quantile(real, np.linspace(0, 1, BINS + 1)[1:-1])
    place = np.searchsorted(edges, confidence)
    return float(np.mean([correct[place == i].mean() for i in range(BINS) if np.any(place == i)]))


def _experiment(
    name: str, args: argparse.Namespace, judge: Judge, truth: np.ndarray, real: np.ndarray, labels: np.ndarray
) -> bool:
    """Judge the samples of one experiment; whether both targets are met."""
    plan, state, run = _trained(name, args.root)
    module, objective = plan.module(state), plan.experiment.objective
    asked = np.repeat(np.arange(CLASSES), args.per_class)
    found = judge(objective.generate(module, plan.spec, asked, seed=SEED))[1]
    accuracy, confidence = _read(found, asked)
    even = matched(found.argmax(1) == asked, found.max(1), real.max(1))
    print(f"result: {name}_guided_accuracy {accuracy:.4f} share (target >= 0.9)")
    print(f"result: {name}_matched_accuracy {even:.4f} share (target >= 0.9; weighted as confident as real scans)")
    print(f"result: {name}_guided_confidence {confidence:.4f} share (real held-out scans: {real.max(1).mean():.4f})")
    distances = []
    for steps in STEPS:
        plain = dataclasses.replace(objective, guidance_scale=1.0, sampling_steps=steps)
        distances.append(frechet(truth, judge(plain.generate(module, plan.spec, labels, seed=SEED))[0]))
        print(f"result: {name}_frechet_{steps}_steps {distances[-1]:.4f} distance", flush=True)
    falls = all(after < before for before, after in itertools.pairwise(distances))
    print(f"result: {name}_frechet_falls {int(falls)} (target 1: with every doubling of the steps)")
    grids = sorted(run.samples.glob("*samples*.png"))
    print(f"grid: {grids[-1] if grids else 'none'}")
    return accuracy >= 0.9 and even >= 0.9 and falls and bool(grids)


def _trained(name: str, root: Path) -> tuple[Any, Any, RunDirectory]:
    """(plan, state, run) of an experiment, trained now unless a complete run of it is below `root`."""
    from assay.train.launch import restored, start

    done = [r for r in run_directories(root) if r.record()["name"] == name and r.status() == "completed"]
    if done:
        run = done[-1]
    else:
        finished = start(config.load(EXPERIMENTS / f"{name}.gin", ["experiment.trackers=[]"]), root)
        if finished.status != "completed":
            sys.exit(f"{name}: {finished.status} at step {finished.step}; there is no result")
        run = finished.run
    plan, state, _ = restored(run)
    return plan, state, run


def _judge(plan: Any, state: Any) -> Judge:
    """The classifier, compiled once for each number of images."""
    import jax

    @jax.jit
    def judged(image: Any) -> tuple[Any, Any]:
        module = plan.module(state)
        head, module.head = module.head, lambda x: x
        features = module({"image": image}, train=False, rngs=None)
        return features, jax.nn.softmax(head(features))

    def judge(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, probabilities = judged(image.astype(np.float32))
        return np.asarray(features, np.float64), np.asarray(probabilities, np.float64)

    return judge


def _read(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(share that is read as `labels`, mean of the largest probability)."""
    return float(np.mean(probabilities.argmax(1) == labels)), float(probabilities.max(1).mean())


def _all(source: Any) -> Mapping[str, np.ndarray]:
    return source.gather(np.arange(len(source)))


if __name__ == "__main__":
    sys.exit(main())
