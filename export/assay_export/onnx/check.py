"""What a converted graph must pass: the checker, the shapes that it declares, and the program's own numbers at many sizes."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay.exported import Tensor
from assay_export.cases import MOST_NUMBERS
from assay_export.compare import difference
from assay_export.onnx.job import Job
from assay_export.symbolic import at_sizes

Arrays = dict[str, np.ndarray]


class Wrong(Exception):
    """A graph that does not compute the program. operation: the one in the way, where it is known."""

    def __init__(self, message: str, operation: str | None = None) -> None:
        super().__init__(message)
        self.operation = operation


def check(file: Path, job: Job, weights: Arrays, tolerance: float) -> float:
    """The largest difference from jax over the corners of the dims. Raises Wrong for one above the tolerance, and for anything invalid."""
    session = _session(file)
    signature, worst = job.program.signature, 0.0
    function: Any = jax.jit(job.program.function)
    for number, corner in enumerate(signature.sizes(job.dims)):
        sizes = _fitting(job, corner)
        inputs = drawn(signature.inputs, sizes, np.random.default_rng(number))
        expected = {name: np.asarray(x) for name, x in function(weights, inputs).items()}
        function.clear_cache()  # no two corners have the same sizes
        try:
            found = session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})
        except Exception as error:
            raise Wrong(f"onnxruntime at {sizes}: {_first_line(error)}", _node(error)) from error
        for output, name, got in zip(session.get_outputs(), job.outputs, found, strict=True):
            try:
                _declared(output.shape, expected[name].shape, sizes)
                off = compare(got, expected[name])
            except Wrong as error:
                raise Wrong(f"output {name} at {sizes} {error}") from error
            worst = max(worst, off)
            if off > tolerance:
                raise Wrong(f"output {name} at {sizes} is off by {off:.1e} of its largest, more than {tolerance:.0e}")
    return worst


def _fitting(job: Job, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes with the batch halved while an output would be too large."""
    found = dict(sizes)
    weights = {path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for path, (shape, dtype) in job.weights.items()}
    while found.get("batch", 1) > 1:
        shapes = jax.eval_shape(job.program.function, weights, at_sizes(job.program.signature, found))
        if max(math.prod(x.shape) for x in shapes.values()) <= MOST_NUMBERS:
            break
        found["batch"] //= 2
    return found


def _session(file: Path) -> Any:
    """A session on the CPU, of a file that the checker accepts."""
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(file), full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Wrong(_first_line(error), _node(error)) from error


def _declared(declared: Sequence[Any], real: tuple[int, ...], sizes: Mapping[str, int]) -> None:
    """Raise Wrong where a size of the file's is another one. Expressions of dims are jax's own and are not worked out."""
    for one, other in zip(declared, real, strict=True):
        size = sizes.get(one, other) if isinstance(one, str) else one
        if size != other:
            raise Wrong(f"is declared {list(declared)}, and has the shape {list(real)}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _node(error: Exception) -> str | None:
    """The operation that the checker or onnxruntime names."""
    found = re.search(r"op_type:(\w+)|implementation for (\w+)|running (\w+) node", str(error))
    return next((group for group in found.groups() if group), None) if found else None


def drawn(inputs: Mapping[str, Tensor], sizes: Mapping[str, int], rng: np.random.Generator) -> Arrays:
    """Random inputs: normal, integers in [0, below), coin flips."""
    return {name: _draw(tensor, sizes, rng) for name, tensor in inputs.items()}


def _draw(tensor: Tensor, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    shape, dtype = tensor.at(sizes), jnp.dtype(tensor.dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        below = sizes[tensor.below] if isinstance(tensor.below, str) else tensor.below
        return rng.integers(0, below or 2, shape).astype(dtype)
    if dtype == jnp.bool_:
        return rng.random(shape) < 0.5
    return rng.normal(size=shape).astype(dtype)


def compare(got: np.ndarray, want: np.ndarray) -> float:
    """As `difference` has it, where both may be infinite or no number in the same places; 1 for integers that are not all the same.

    Raises Wrong where shapes, dtypes or NaNs differ.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        raise Wrong(f"is {got.dtype}{list(got.shape)}, and must be {want.dtype}{list(want.shape)}")
    if not jnp.issubdtype(want.dtype, jnp.floating):
        return float(np.max(got != want, initial=0))
    numbers = [np.isfinite(x) for x in (got, want)]
    if all(map(np.all, numbers)):
        return difference(got, want).max_abs
    if not np.array_equal(np.isnan(got), np.isnan(want)):
        raise Wrong("is not a number where it should be one, or the reverse")
    same = ((got == want) | np.isnan(got)) & ~numbers[1]  # infinities too
    return difference(*(np.where(same, np.zeros((), x.dtype), x) for x in (got, want))).max_abs
