"""jax2onnx as the converting subprocess uses it: its plugins loaded so that processes can fork, and its faults mended."""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def load() -> str:
    """Import jax2onnx and mend it; its version. What starts XLA's threads, which do not survive a fork, is left to `load_late`."""
    version = _load()
    _floor_divisions()
    _sizes_of_expressions()
    _updates()
    _searches()
    return version


def load_late() -> None:
    """Import, within a fork, the plugins that compute something when they are imported."""
    for name in LATE:
        importlib.import_module(name)


def _load() -> str:
    """Import jax2onnx and its plugins, but for those of `LATE`."""
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


def _updates() -> None:
    """Updates of slices as one scatter along an axis, where they are that."""
    from jax2onnx.plugins.jax.lax.dynamic_update_slice import DynamicUpdateSlicePlugin

    from assay_export.onnx.updates import along_one_axis

    DynamicUpdateSlicePlugin.lower = along_one_axis(DynamicUpdateSlicePlugin.lower)


def _searches() -> None:
    """Who makes a value and who reads it, asked of the value itself: jax2onnx looks through the whole graph for each equation."""
    from jax2onnx.converter import output_binding

    searched = output_binding._value_is_graph_connected

    def connected(ctx: Any, value: Any) -> bool:
        maker = value.producer()
        return (maker is not None and maker.graph is ctx.builder.graph) or searched(ctx, value)

    output_binding._value_is_graph_connected = connected
    for name, found_of in (("_producer_node", _producer), ("_consumer_nodes", _consumers)):
        for module in [m for n, m in sys.modules.items() if n.startswith("jax2onnx.converter") and hasattr(m, name)]:
            setattr(module, name, found_of(getattr(module, name)))


def _producer(searched: Callable[..., Any]) -> Callable[..., Any]:
    """The node of `nodes` that makes a value; by its name, or None, as jax2onnx's own search has it where the value does not know."""

    def producer(nodes: Any, value: Any) -> Any:
        maker = value.producer() if hasattr(value, "producer") else None
        return maker if maker is not None and maker in nodes else searched(nodes, value)

    return producer


def _consumers(searched: Callable[..., Any]) -> Callable[..., Any]:
    """The same of those that read it."""

    def consumers(nodes: Any, value: Any) -> Any:
        users = value.consumers() if hasattr(value, "consumers") else ()
        return [node for node in users if node in nodes] or searched(nodes, value)

    return consumers
