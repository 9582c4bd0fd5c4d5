"""The converter's side of a subprocess: jax2onnx leaves jax patched, so every conversion happens in a fork that ends with it.

Started as `python -m assay_export.onnx.worker` by assay_export.onnx.converter. Reads one line of JSON for each conversion,
{"job": path, "route": name, "model": path}, and answers with one: {}, or {"error": text, "operation": name or null}
and, where no other route need be tried, "final".
"""

import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

UNUSED = tuple(
    f"jax2onnx.plugins.{name}" for name in ("examples", "equinox", "dm_pix", "flax.linen", "flax.test_utils")
)
"""Plugins of libraries that Assay does not use."""
LATE = tuple(
    f"jax2onnx.plugins.jax.{name}"
    for name in (
        *(f"lax.{op}" for op in ("fori_loop", "reduce_and", "reduce_or", "scan", "select_n")),
        *(f"lax.scatter_{op}" for op in ("add", "max", "min", "mul", "sub")),
        "nn.initializers.truncated_normal",
    )
)
"""Plugins that compute something when they are imported."""


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not mix with answers
    version = _load()
    _floor_divisions()
    _sizes_of_expressions()
    _say(answers, {"version": version})
    for line in sys.stdin:
        _say(answers, _in_fork(json.loads(line)))


def _load() -> str:
    """Import jax2onnx and its plugins, but for those that run computations at once: XLA's threads do not survive a fork."""
    import jax.numpy

    cumsum = jax.numpy.cumsum
    import jax2onnx.plugins
    from jax._src.xla_bridge import backends_are_initialized
    from jax2onnx.plugins import plugin_system

    root = Path(jax2onnx.plugins.__file__).parent
    for file in sorted(root.rglob("*.py")):
        name = ".".join(["jax2onnx.plugins", *file.relative_to(root).with_suffix("").parts])
        if not name.startswith(UNUSED) and name not in LATE and file.name != "__init__.py":
            importlib.import_module(name)
    plugin_system._already_imported_plugins = True
    jax.numpy.cumsum = cumsum  # replaced by the import for good
    assert not backends_are_initialized()
    return importlib.metadata.version("jax2onnx")


def _floor_divisions() -> None:
    """Sizes such as -floordiv(-H, 2): ONNX's Div rounds towards zero, so take the remainder off first."""
    from jax2onnx.converter.lower_dimexpr import LowerDimExpr

    converted = LowerDimExpr._convert_op

    def convert(self: Any, name: str, operands: list[Any]) -> Any:
        if name == "floordiv":
            rest = converted(self, "mod", operands)
            whole = self.ctx.builder.Sub(operands[0], rest, _outputs=[self.ctx.fresh_name("dimexpr_sub")])
            self._set_metadata(whole)
            operands = [whole, operands[1]]
        return converted(self, name, operands)

    LowerDimExpr._convert_op = convert


def _sizes_of_expressions() -> None:
    """Give sizes such as 2*H + 1 an array of that size to be read from, where no input or result has one yet."""
    import onnx_ir as ir
    from jax2onnx.converter.ir_context import IRContext

    known = IRContext.get_symbolic_dim_origin

    def origin(self: Any, dim: Any) -> Any:
        found = known(self, dim)
        if found is None and hasattr(dim, "_sorted_terms"):
            size = self.dim_expr_lowerer([dim])
            blank = self.builder.ConstantOfShape(size, _outputs=[self.fresh_name("dimexpr_array")])
            blank.type, blank.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((None,))
            self.record_symbolic_dim_origin(dim, blank, 0)
            found = known(self, dim)
        return found

    IRContext.get_symbolic_dim_origin = origin


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _in_fork(request: dict[str, Any]) -> dict[str, Any]:
    """What `_convert` answers in a process of its own."""
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
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else {"error": f"the converter ended with status {status}", "operation": None}


def _convert(request: dict[str, Any]) -> dict[str, Any]:
    import cloudpickle

    from assay_export.onnx.rewrite import Unsupported

    try:
        job = cloudpickle.loads(Path(request["job"]).read_bytes())
        model = ROUTES[request["route"]](job)
        Path(request["model"]).write_bytes(model.SerializeToString())
        return {}
    except Unsupported as error:
        return {"error": str(error), "operation": error.operation, "final": True}
    except BaseException as error:
        if os.environ.get("ASSAY_ONNX_TRACE"):
            traceback.print_exc()
        message = next(iter(str(error).splitlines()), "")
        return {"error": f"{type(error).__name__}: {message}", "operation": _operation(error.__traceback__)}


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

    for name in LATE:
        importlib.import_module(name)
    return to_onnx(function, arguments, opset=job.opset, input_names=job.input_names(), output_names=job.output_names())


ROUTES = {"plain": _plain, "patched": _patched}

if __name__ == "__main__":
    main()
