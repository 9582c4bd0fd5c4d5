"""What the conformance kit of exporters gives them: small programs, an artifact's directory, random inputs."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay.data.spec import DataSpec
from assay.exported import Dim, Exported, Program, Signature, Tensor

WIDTH, CLASSES = 6, 5


def programs() -> Exported:
    """Two programs with dynamic sizes, one of them with a cache."""
    return _example((Program("forward", _forward, _FORWARD), Program("count", _count, _COUNT)))


def calling_python() -> Exported:
    """A program that calls Python."""
    return _example((Program("forward", _python, _FORWARD),))


@contextlib.contextmanager
def artifact(source: Exported) -> Iterator[Path]:
    """A directory with the weights of `source`, as an exporter finds it."""
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory(prefix="assay-exporter-kit-") as place:
        artifact = Path(place)
        (artifact / "weights").mkdir()
        save_file(
            {path: np.ascontiguousarray(w) for path, w in source.weights.items()},
            artifact / "weights/model.safetensors",
        )
        yield artifact


def inputs(source: Exported, signature: Signature, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Random inputs of these sizes; integers below their bounds."""
    rng = np.random.default_rng(sum(sizes.values()))
    found = {}
    for name, tensor in signature.inputs.items():
        below = sizes.get(tensor.below, 1) if isinstance(tensor.below, str) else tensor.below
        if tensor.dtype.startswith(("int", "uint", "bool")):
            found[name] = rng.integers(0, below or 2, tensor.at(sizes)).astype(tensor.dtype)
        else:
            found[name] = rng.normal(size=tensor.at(sizes)).astype("float32")
    return found


def plain(signature: Signature) -> dict[str, Any]:
    """As the manifest has it."""
    sides: dict[str, Any] = {
        side: {n: {"shape": list(t.shape), "dtype": t.dtype, "below": t.below} for n, t in tensors.items()}
        for side, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    return {**sides, "donated": list(signature.donated), "at_most": [list(pair) for pair in signature.at_most]}


def _forward(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    hidden = jnp.tanh(inputs["features"] @ weights["layer/kernel"] + weights["layer/bias"][None, None])
    return {"output": jax.nn.softmax(hidden, axis=-1) * inputs["scale"][:, None, None]}


def _count(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    cache = inputs["cache/sum"] + inputs["features"] @ weights["layer/kernel"]
    return {"output": jnp.tanh(cache), "cache/sum": cache}


def _python(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    scale = inputs["scale"]
    shape = jax.ShapeDtypeStruct(scale.shape, scale.dtype)
    found = jax.pure_callback(lambda x: np.asarray(x) + 1, shape, scale)
    return {"output": _forward(weights, {**inputs, "scale": found})["output"]}


_FORWARD = Signature(
    {"features": Tensor(("batch", "seq", WIDTH), "float32"), "scale": Tensor(("batch",), "float32")},
    {"output": Tensor(("batch", "seq", CLASSES), "float32")},
)
_COUNT = Signature(
    {"features": Tensor(("batch", WIDTH), "float32"), "cache/sum": Tensor(("batch", CLASSES), "float32")},
    {"output": Tensor(("batch", CLASSES), "float32"), "cache/sum": Tensor(("batch", CLASSES), "float32")},
    donated=("cache/sum",),
)


def _example(programs: tuple[Program, ...]) -> Exported:
    draw = np.random.default_rng(0).normal
    weights = {"layer/kernel": draw(size=(WIDTH, CLASSES)), "layer/bias": draw(size=(CLASSES,))}
    return Exported(
        model=None,
        spec=DataSpec({}),
        programs=programs,
        dims={"batch": Dim(1, 4), "seq": Dim(1, 7)},
        weights={path: w.astype(np.float32) for path, w in weights.items()},
        examples={},
        lineage={"run": "kit"},
    )
