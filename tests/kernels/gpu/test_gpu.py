"""T2: every implementation of every op on the GPU that is here, on all of the op's cases.

    JAX_PLATFORMS=cuda,cpu python -m pytest --noconftest -c /dev/null --rootdir . -s tests/kernels/gpu        # PYTHONPATH=kernels

Needs jax with CUDA, numpy and pytest; skips where there is no GPU, as in the suite, whose conftest asks for the CPU. Cases are the
mappings CASES and LARGE of the op's `cases` module. $ASSAY_T2_REPORT names a file for the errors found, as JSON. With ASSAY_T2_SMOKE=1 any
device will do, and an op's first case: that it runs, not what it says.
"""

import concurrent.futures
import contextlib
import functools
import importlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay_kernels import ImplementationError, Op, current_target, testing
from assay_kernels.benching import ops_with

SMOKE = os.environ.get("ASSAY_T2_SMOKE") == "1"
if jax.default_backend() != "gpu" and not SMOKE:
    pytest.skip(
        f"needs a GPU, jax's default backend is {jax.default_backend()} (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}); "
        "docs/kernels/measuring.md says how to run it",
        allow_module_level=True,
    )

REPORT = os.environ.get("ASSAY_T2_REPORT")
THREADS = 6  # compiling is most of the time
_report: dict[str, Any] = {
    "complete": False,
    "smoke": SMOKE,
    "target": str(current_target()),
    "jax": jax.__version__,
    "rows": [],
}
_writing = threading.Lock()


def record(**row: Any) -> None:
    """Add a row to the report and write it again."""
    with _writing:
        _report["rows"].append(row)
        write()


def write() -> None:
    if REPORT:
        Path(REPORT).write_text(json.dumps(_report, indent=1) + "\n", encoding="utf-8")


def cases_of(name: str) -> Mapping[str, testing.Case]:
    module = importlib.import_module(f"assay_kernels.{name}.cases")
    found = {**module.CASES, **getattr(module, "LARGE", {})}
    return dict(list(found.items())[:1]) if SMOKE else found


def op_of(name: str) -> Op:
    return importlib.import_module(f"assay_kernels.{name}").OP


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# jnp's function, numpy's, and their arguments. Compiled one by one some GPUs give wrong results (jax-ml/jax#40633).
OPERATIONS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    "sqrt": (jnp.sqrt, np.sqrt, (np.float32(512.0),)),
    "add": (lambda x: x + 1, lambda x: x + 1, (np.ones(4, np.float32),)),
    "sum": (jnp.sum, np.sum, (np.arange(10),)),
    "exp": (jnp.exp, np.exp, (random(1000),)),
    "tanh": (jnp.tanh, np.tanh, (random(1000),)),
    "where": (lambda x: jnp.where(x > 0, 1.0, -1.0), lambda x: np.where(x > 0, 1.0, -1.0), (random(999),)),
    "mean": (lambda x: jnp.mean(x, axis=0), lambda x: np.mean(x, axis=0), (random(300, 70),)),
    "max": (lambda x: jnp.max(x, axis=1), lambda x: np.max(x, axis=1), (random(300, 70),)),
    "argsort": (jnp.argsort, np.argsort, (random(5000),)),
    "cumsum": (jnp.cumsum, np.cumsum, (np.arange(5000),)),
    "gather": (lambda x, i: x[i], lambda x, i: x[i], (random(50, 3), np.arange(49, -1, -1))),
    "product": (lambda a, b: jnp.matmul(a, b, precision="highest"), np.matmul, (random(65, 130), random(130, 33))),
    "bf16": (lambda x: x * 3, lambda x: x * 3, (random(100).astype(jnp.bfloat16),)),
}


@pytest.mark.parametrize("jitted", [False, True], ids=["one by one", "jitted"])
def test_the_device_computes_what_numpy_does(jitted: bool) -> None:
    """First of all: where this fails, nothing below means anything."""
    wrong = []
    with jax.disable_jit(not jitted):
        for name, (ours, theirs, arguments) in OPERATIONS.items():
            found = np.asarray(jax.jit(ours)(*map(jnp.asarray, arguments)), np.float64)
            true = np.asarray(theirs(*arguments), np.float64)
            if not np.allclose(found, true, rtol=1e-5, atol=1e-5):
                wrong.append(f"{name}: {np.ravel(found)[:4]}, not {np.ravel(true)[:4]}")
        key = jax.random.key(0)
        drawn = {"uniform": jax.random.uniform(key, (1000,)), "normal": jax.random.normal(key, (1000,))}
        with jax.default_device(jax.devices("cpu")[0]):
            key = jax.random.key(0)
            there = {"uniform": jax.random.uniform(key, (1000,)), "normal": jax.random.normal(key, (1000,))}
    wrong += [f"random.{k}" for k in drawn if not np.allclose(drawn[k], there[k], rtol=1e-5, atol=1e-6)]
    assert not wrong, "the device computes wrong numbers: " + "; ".join(wrong)


@pytest.mark.parametrize("name", ops_with("cases"))
def test_the_specification_in_float64_is_the_same_on_gpu_and_cpu(name: str) -> None:
    op, case = op_of(name), next(iter(cases_of(name).values()))
    here = testing.exact(op, case, case.draw(0))
    with jax.default_device(jax.devices("cpu")[0]):
        there = testing.exact(op, case, case.draw(0))
    for found, true in zip(here, there, strict=True):
        assert max(testing.errors(found, true), default=0.0) < 1e-10


def full_precision(arguments: Sequence[Any]) -> Any:
    """For fp32 inputs: on a GPU jax multiplies them as TF32 unless it is asked for more, which is no fault of an implementation."""
    single = next(x.dtype for x in arguments if testing.is_floating(x)) == jnp.float32
    return jax.default_matmul_precision("highest") if single else contextlib.nullcontext()


def unit(name: str, implementation: str, title: str, case: testing.Case) -> Exception | None:
    """One implementation on one case; what it did wrong, if anything."""
    op, row = op_of(name), {"op": name, "implementation": implementation, "case": title}
    arguments = case.draw(0)
    try:
        op.choose(current_target(), implementation, *arguments)
    except ImplementationError as reason:
        record(**row, refused=str(reason))
        return None
    try:
        with full_precision(arguments):
            found = testing.examine(op, implementation, case)
    except Exception as error:
        record(**row, error=f"{type(error).__name__}: {error}")
        error.add_note(f"in case {title!r} of {name}.{implementation}")
        return error
    record(
        **row,
        errors=found.own,
        naive=found.naive,
        gradient_errors=found.own_gradients,
        naive_gradients=found.naive_gradients,
    )
    return None


@pytest.mark.parametrize("name", ops_with("cases"))
def test_every_implementation_on_every_case(name: str) -> None:
    """Values and gradients against float64, poison, ten runs bit by bit, and the compiled program against the choice."""
    units = [
        functools.partial(unit, name, implementation, title, case)
        for title, case in cases_of(name).items()
        for implementation in op_of(name).names
    ]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        failed = [error for error in pool.map(lambda one: one(), units) if error is not None]
    rows = [row for row in _report["rows"] if row["op"] == name]
    refused = sum("refused" in row for row in rows)
    print(
        f"{name}: {len(rows) - refused} of {len(rows)} pairs of implementation and case run, {refused} refused, {len(failed)} failed"
    )
    if failed:
        raise ExceptionGroup(f"{name}: {len(failed)} of {len(rows)} failed", failed)


def test_the_report_is_whole() -> None:
    """Last, so that who reads the report knows that nothing is missing."""
    rows = _report["rows"]
    refused, failed = (sum(kind in row for row in rows) for kind in ("refused", "error"))
    line = f"result: t2_passed {len(rows) - refused - failed} of {len(rows) - refused} pairs of implementation and case (target all)"
    _report.update(complete=True, results=[line])
    write()
    print(line)
