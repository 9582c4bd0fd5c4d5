"""benchmarks/gpu_suite.sh in its smallest size, on the CPU, and the GPT-2 of its stages against the experiment's own."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "benchmarks" / "gpu_suite.sh"


def suite(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_NUMPY_RANK_PROMOTION", "ASSAY_DATA_DIR")}
    env |= {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run([SUITE, *arguments], env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def tokens(tmp_path) -> Path:
    path = tmp_path / "tokens.bin"
    np.random.default_rng(0).integers(0, 512, 5000, np.uint16).tofile(path)
    return path


def test_stages_are_run_once_and_what_is_missing_is_said(tmp_path, tokens) -> None:
    out = tmp_path / "out"
    found = suite("--smoke", str(out), "gpt2_124m", TOKENS=str(tokens))
    assert found.returncode == 0, found.stdout + found.stderr
    trained = json.loads((out / "gpt2_124m.json").read_text())
    assert trained["complete"]
    assert trained["smoke"]
    assert len(trained["losses"]) == trained["settings"]["steps"] == 6
    assert {"attention", "linear_cross_entropy"} <= {kernel["op"] for kernel in trained["kernels"]}
    assert trained["predicted_bytes"] > 0
    assert "result: gpt2_124m_throughput " in (out / "summary.txt").read_text()

    again = suite("--smoke", str(out), "gpt2_124m", "no_such_stage", TOKENS=str(tokens))
    assert again.returncode == 1
    assert "gpt2_124m: complete, from an earlier call" in again.stdout
    assert "no_such_stage: INCOMPLETE" in again.stdout
    assert "result: gpt2_124m_throughput " in again.stdout

    late = suite("--smoke", "--seconds", "5", str(tmp_path / "other"), "memory", TOKENS=str(tokens))
    assert late.returncode == 1
    assert "memory: not started, the time is up" in late.stdout

    real = suite(
        str(out), "gpt2_124m", TOKENS=str(tmp_path / "not there")
    )  # a smoke run's figures do not count for a real one
    assert real.returncode == 1
    assert "not there is not there: give --tokens FILE" in real.stdout


@pytest.mark.slow
def test_the_whole_suite_runs_in_its_smallest_size(tmp_path, tokens) -> None:
    listed = suite("--list").stdout.splitlines()[0].removeprefix("default: ").split()
    assert {"t2", "kernels-linear_cross_entropy", "gpt2_124m", "memory", "deterministic", "compile"} <= set(listed)
    # gpt2_124m has a test of its own, and the last two run its program again.
    stages = [stage for stage in listed if stage not in ("gpt2_124m", "deterministic", "compile")]
    found = suite("--smoke", str(tmp_path), *stages, TOKENS=str(tokens))
    assert found.returncode == 0, found.stdout + found.stderr
    for stage in stages:
        written = json.loads((tmp_path / f"{stage}.json").read_text())
        assert written["complete"], stage
        assert written["smoke"], stage


@pytest.fixture
def gpt2_gpu(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpt2_gpu

    return gpt2_gpu


@pytest.mark.parametrize(
    ("change", "good", "said"),
    [
        ({}, True, "result: gpt2_124m_losses 0.00e+00 nats, the largest of 3 (target <= 0.01)"),
        (
            {"losses": [3.0, 2.5, 1.0]},
            False,
            "result: gpt2_124m_losses 5.00e-01 nats, the largest of 3 (target <= 0.01)",
        ),
        (
            {"settings": {"steps": 2}},
            True,
            "losses: stored.json is of other tokens or settings, nothing to compare with",
        ),
        (
            {"tokens": {"sha256": "b"}},
            True,
            "losses: stored.json is of other tokens or settings, nothing to compare with",
        ),
        (None, True, "losses: stored.json is not there, nothing to compare with"),
    ],
)
def test_stored_losses_are_compared_where_tokens_and_settings_are_the_same(
    gpt2_gpu, tmp_path, capsys, change: Any, good: bool, said: str
) -> None:
    now = {"losses": [3.0, 2.0, 1.0], "settings": {"steps": 3}, "tokens": {"sha256": "a"}}
    if change is not None:
        (tmp_path / "stored.json").write_text(json.dumps(now | change))
    args = argparse.Namespace(json=None, smoke=False, size=gpt2_gpu.SMOKE, losses=tmp_path / "stored.json")
    log = gpt2_gpu.Log("gpt2_124m", args)
    log.note(**now)
    gpt2_gpu.compare_losses(log, args)
    assert capsys.readouterr().out.strip() == said
    assert log.good == good


def test_its_gpt2_is_that_of_the_experiment(gpt2_gpu, tmp_path) -> None:
    from assay import config

    path = tmp_path / "tokens.bin"
    np.arange(3000, dtype=np.uint16).tofile(path)
    ours: Any = gpt2_gpu.experiment(gpt2_gpu.FULL, gpt2_gpu.Tokens(path, gpt2_gpu.FULL), None)
    theirs = config.load(ROOT / "experiments" / "gpt2_124m.gin", ["model.transformer.vocab_multiple=128"]).experiment
    assert ours.model == theirs.model
    assert ours.optimizer.__dict__ | {"learning_rate": 0} == theirs.optimizer.__dict__ | {"learning_rate": 0}
    for step in (0, 100, 3000):
        assert ours.optimizer.learning_rate_at(4000)(step) == theirs.optimizer.learning_rate_at(4000)(step)
    assert (ours.objective, ours.parallelism, ours.compute_dtype) == (
        theirs.objective,
        theirs.parallelism,
        theirs.compute_dtype,
    )
    assert ours.batch_size * gpt2_gpu.FULL.context == 524_288


def test_annotations_do_without_jaxtyping(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bare

    monkeypatch.setattr(bare.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "jaxtyping", sys.modules.get("jaxtyping"))
    bare.without_jaxtyping()
    from jaxtyping import Array, Float

    assert Float[Array, "batch seq"] is Any
