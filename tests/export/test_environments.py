"""An artifact in environments that are made for it: what its manifest says that a format needs, and nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from assay_export import artifact
from assay_export.onnx.exporter import ONNX
from assay_export.stablehlo.exporter import StableHLO

from .conftest import Model

LOCK = Path(__file__).parents[2] / "requirements.lock"
UV = Path(sys.executable).with_name("uv")
IREE = ("iree-base-compiler==3.13.0", "iree-base-runtime==3.13.0", "safetensors", "ml_dtypes")
IDS = np.arange(5, dtype=np.int32)[None]
pytestmark = pytest.mark.skipif(not UV.exists(), reason="environments are made with uv, which `make` installs")


def environment(place: Path, requirements: Sequence[str]) -> Path:
    """The interpreter of a new virtual environment with these packages, in the locked versions where there are any; or a skip."""
    python = place / "bin" / "python"
    commands: Sequence[Sequence[str | Path]] = (
        [UV, "venv", "--quiet", "--python", sys.executable, place],
        [UV, "pip", "install", "--quiet", "--python", python, "--constraint", LOCK, *requirements],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no environment with {', '.join(requirements)} can be made here: {done.stderr.strip()[-300:]}")
    return python


def bare(variables: Mapping[str, str]) -> dict[str, str]:
    """Nothing that would lead Python to other packages."""
    return {k: v for k, v in variables.items() if not k.startswith(("PYTHON", "JAX", "XLA"))} | {"JAX_PLATFORMS": "cpu"}


def close(path: Path, name: str, decoder: Model) -> None:
    live = np.asarray(decoder.live.forward({"inputs": IDS}))
    with np.load(path) as arrays:
        np.testing.assert_allclose(arrays[name], live, atol=2e-5 * np.abs(live).max(), rtol=0)


@pytest.fixture(scope="module", autouse=True)
def one_converter() -> None:
    """Exporting starts a converter and ends it, as for users."""


@pytest.fixture(scope="module")
def made(decoder: Model, tmp_path_factory) -> Path:
    """An artifact with both formats."""
    place = tmp_path_factory.mktemp("environments") / "artifact"
    place.mkdir()
    artifact.fill(
        place, decoder.source, {"stablehlo": StableHLO(platforms=("cpu",)), "onnx": ONNX()}, {"tokenizer": None}
    )
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "absent"), [("stablehlo", ("assay", "flax", "onnxruntime")), ("onnx", ("assay", "jax", "safetensors"))]
)
def test_it_runs_with_what_its_format_needs_and_nothing_else(
    name, absent, made: Path, decoder: Model, tmp_path
) -> None:
    needs = json.loads((made / "manifest.json").read_text())["formats"][name]["requirements"]
    python, variables = environment(tmp_path / "env", [*needs, "numpy"]), bare(os.environ)
    for module in absent:
        done = subprocess.run(
            [python, "-c", f"import {module}"], env=variables, capture_output=True, text=True, check=False
        )
        assert f"No module named '{module}'" in done.stderr
    np.savez(tmp_path / "in.npz", inputs=IDS)
    words = ["forward", "--format", name, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz"]
    subprocess.run([python, made / "run.py", *words], env=variables, check=True, cwd=tmp_path)
    close(tmp_path / "out.npz", "output", decoder)


@pytest.mark.slow
def test_iree_gives_the_same(made: Path, decoder: Model, tmp_path) -> None:
    python = environment(tmp_path / "env", IREE)
    np.savez(tmp_path / "in.npz", inputs=IDS)
    words = [made, "static/forward-batch1-seq5.mlirbc", tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(
        [python, "-I", Path(__file__).with_name("iree_runs.py"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    close(tmp_path / "out.npz", "arr_0", decoder)
