"""How jax's dynamic_update_slice becomes ONNX: a scatter along the one axis on which the update is shorter, as in a cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

Lowering = Callable[[Any, Any, Any], None]


def along_one_axis(otherwise: Lowering) -> Lowering:
    """jax2onnx's lowering for updates of this form; `otherwise` for the others. A runtime that writes in place writes the update alone."""

    def lower(plugin: Any, ctx: Any, equation: Any) -> None:
        into, update, *starts = equation.invars
        pairs = zip(into.aval.shape, update.aval.shape, strict=True)
        shorter = [axis for axis, (size, count) in enumerate(pairs) if size != count]
        if len(shorter) != 1:
            return otherwise(plugin, ctx, equation)
        axis, rank = shorter[0], len(starts)
        into_value, update_value, start = (ctx.get_value_for_var(v) for v in (into, update, starts[axis]))
        index = _index(ctx, into_value, update_value, start, axis, rank)
        spec = ctx.get_value_for_var(equation.outvars[0])
        out = ctx.builder.ScatterElements(into_value, index, update_value, axis=axis, _outputs=[spec.name])
        out.type, out.shape = spec.type, spec.shape
        return ctx.bind_value_for_var(equation.outvars[0], out)

    return lower


def _index(ctx: Any, into: Any, update: Any, start: Any, axis: int, rank: int) -> Any:
    """Where each number of the update goes along the axis, int64, of its shape: from `start` on, or earlier so that it fits."""

    def node(operation: str, *inputs: Any, sizes: tuple[Any, ...] = (None,), **attributes: Any) -> Any:
        out = getattr(ctx.builder, operation)(*inputs, _outputs=[ctx.fresh_name("update")], **attributes)
        out.type, out.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(sizes)
        return out

    def number(value: Any) -> Any:
        return ctx.builder.add_initializer_from_array(ctx.fresh_name("update"), np.asarray(value, np.int64))

    along = [1] * axis + [-1] + [1] * (rank - axis - 1)
    size, count = (node("Shape", x, sizes=(1,), start=axis, end=axis + 1) for x in (into, update))
    first = node("Reshape", node("Cast", start, sizes=(), to=int(ir.DataType.INT64)), number([1]), sizes=(1,))
    first = node("Max", node("Min", first, node("Sub", size, count, sizes=(1,)), sizes=(1,)), number([0]), sizes=(1,))
    steps = node("Range", number(0), node("Reshape", count, number([]), sizes=()), number(1))
    places = node("Reshape", node("Add", steps, first), number(along), sizes=(None,) * rank)
    return node("Expand", places, node("Shape", update, sizes=(rank,)), sizes=(None,) * rank)
