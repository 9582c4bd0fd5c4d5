"""An artifact in an environment that has its requirements and nothing else: no Assay, flax or optax."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import Model

PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "ml_dtypes",
    "scipy",
    "opt_einsum",
    "safetensors",
    "flatbuffers",
)  # jax's, and the two


def environment(place: Path) -> dict[str, str]:
    """The variables of a Python whose only packages are links to these; with -S it sees no others."""
    place.mkdir()
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        (place / name).symlink_to(package)
        if (libraries := package.with_name(f"{name}.libs")).exists():
            (place / libraries.name).symlink_to(libraries)
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX", "XLA"))} | {
        "PYTHONPATH": str(place),
        "JAX_PLATFORMS": "cpu",
    }


def test_it_runs_with_jax_safetensors_and_flatbuffers_alone(decoder: Model, decoder_artifact: Path, tmp_path) -> None:
    env = environment(tmp_path / "packages")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import flax"], env=env, capture_output=True, text=True, check=False
    )
    assert "No module named 'flax'" in done.stderr
    ids = np.arange(5, dtype=np.int32)[None]
    np.savez(tmp_path / "in.npz", inputs=ids)
    words = ["forward", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz"]
    subprocess.run([sys.executable, "-S", decoder_artifact / "run.py", *words], env=env, check=True, cwd=tmp_path)
    live = np.asarray(decoder.live.forward({"inputs": ids}))
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_allclose(arrays["output"], live, atol=2e-5 * np.abs(live).max(), rtol=0)


@pytest.mark.slow
def test_iree_gives_the_same(decoder: Model, decoder_artifact: Path, tmp_path) -> None:
    python = os.environ.get("ASSAY_IREE_PYTHON")
    if python is None:
        pytest.skip(
            "set ASSAY_IREE_PYTHON to a Python with iree-base-compiler, iree-base-runtime, safetensors and ml_dtypes"
        )
    ids = np.arange(5, dtype=np.int32)[None]
    np.savez(tmp_path / "in.npz", inputs=ids)
    words = [decoder_artifact, "static/forward-batch1-seq5.mlirbc", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run([python, "-I", Path(__file__).with_name("iree_runs.py"), *words], check=True, capture_output=True)
    live = np.asarray(decoder.live.forward({"inputs": ids}))
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_allclose(arrays["arr_0"], live, atol=2e-5 * np.abs(live).max(), rtol=0)
