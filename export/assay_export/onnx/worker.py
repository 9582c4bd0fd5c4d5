"""The converter's side of a subprocess: jax2onnx leaves jax patched, so every conversion happens in a fork that ends with it.

Started as `python -m assay_export.onnx.worker` by assay_export.onnx.converter. Reads one line of JSON for each conversion,
{"job": path, "route": name, "model": path}, and answers with one: {}, or {"error": text, "operation": name or null}
and, where no other route need be tried, "final"; or {"stopped": text} where the machine and not the program was in the way.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from assay_export.onnx import library

MEMORY = "memory ran out (signal 9); free some, or export on a machine with more"


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not mix with answers
    _say(answers, {"version": library.load()})
    for line in sys.stdin:
        _say(answers, _in_fork(json.loads(line)))


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _in_fork(request: dict[str, Any]) -> dict[str, Any]:
    """What `_convert` answers in a process of its own. The kernel kills with SIGKILL where memory runs out."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = json.dumps(_convert(request)).encode()
            os.write(writer, answer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer:
        return dict(json.loads(answer))
    if code == -signal.SIGKILL:
        return {"stopped": MEMORY}
    return {"error": f"the converter ended with status {code}", "operation": None}


def _convert(request: dict[str, Any]) -> dict[str, Any]:
    import cloudpickle

    from assay_export.onnx.rewrite import Unsupported

    try:
        job = cloudpickle.loads(Path(request["job"]).read_bytes())
        written = ROUTES[request["route"]](job).SerializeToString()
    except MemoryError:
        return {"stopped": MEMORY}
    except Unsupported as error:
        return {"error": str(error), "operation": error.operation, "final": True}
    except BaseException as error:
        message = next(iter(str(error).splitlines()), "")
        return {"error": f"{type(error).__name__}: {message}", "operation": _operation(error.__traceback__)}
    try:
        Path(request["model"]).write_bytes(written)
    except OSError as error:
        return {"stopped": f"{error}; make room there, or set TMPDIR to a directory that has it"}
    return {}


def _operation(trace: TracebackType | None) -> str | None:
    """The primitive that was being converted, from the frames of the failure."""
    found = None
    while trace is not None:
        equation: Any = trace.tb_frame.f_locals.get("eqn")
        found = equation.primitive.name if hasattr(equation, "primitive") else found
        trace = trace.tb_next
    return found


def _plain(job: Any) -> Any:
    """Trace without jax2onnx's patches and rewrite what it does not convert; then only primitives are left for it."""
    import jax
    import jax.extend

    from assay_export.onnx.rewrite import rewritten

    arguments = job.arguments()
    closed = jax.make_jaxpr(rewritten(jax.make_jaxpr(job.flat)(*arguments)))(*arguments)
    return _to_onnx(jax.extend.core.jaxpr_as_fun(closed), job, arguments)


def _patched(job: Any) -> Any:
    """jax2onnx's default: it traces through its own versions of jax.numpy and flax."""
    return _to_onnx(job.flat, job, job.arguments())


def _to_onnx(function: Callable[..., Any], job: Any, arguments: list[Any]) -> Any:
    from jax2onnx import to_onnx

    library.load_late()
    return to_onnx(function, arguments, opset=job.opset, input_names=job.input_names(), output_names=job.output_names())


ROUTES = {"plain": _plain, "patched": _patched}

if __name__ == "__main__":
    main()
