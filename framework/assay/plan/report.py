"""The plan as text: what `assay plan` prints and `assay run` opens with."""

import math
from typing import Any

import jax

from assay.plan.plan import Plan
from assay.table import table
from assay.train.progress import readable


def summary(plan: Plan) -> list[str]:
    """A few lines: the network, the mesh, the work."""
    e, mesh = plan.experiment, plan.layout.mesh
    device = mesh.devices.flat[0]
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    idle = jax.device_count() - plan.device_count
    held = plan.bytes_per_device()
    total = e.steps * plan.units_per_step
    kind = f"{device.platform} ({device.device_kind})"
    lines = [
        f"model       {type(e.model).__name__}, {plan.network.parameter_count:,} parameters, {e.compute_dtype} compute",
        f"mesh        {axes} on {plan.device_count} of {jax.device_count()} devices, {kind}"
        + (f"; {idle} IDLE" if idle else ""),
        f"state       {_bytes(held['state'])} a device: parameters {_bytes(held['parameters'])}, optimizer {_bytes(held['optimizer'])}"
        + (f", frozen parameters {_bytes(held['frozen'])}" if held["frozen"] else ""),
        f"batch       {e.batch_size} examples"
        + (f", {plan.units_per_step:,} {plan.spec.unit}" if plan.spec.unit != "examples" else "")
        + (f", {e.accumulation} micro-batches" if e.accumulation > 1 else ""),
        f"work        {e.steps:,} steps, {total:,} {plan.spec.unit}; {readable(plan.flops_per_step)}FLOP a step, "
        f"{readable(plan.flops_per_step * e.steps)}FLOP in all; {plan.steps_per_dispatch} a dispatch",
    ]
    source = e.dataset.source("train")
    epochs = e.steps * e.batch_size / len(source)
    return [*lines, f"data        {len(source):,} training examples, {epochs:.2f} epochs"]


def parameters(plan: Plan) -> list[str]:
    """One line for each parameter: path, shape, logical axes, placement, bytes a device."""
    rows = [("parameter", "shape", "axes", "placed over", "a device")]
    flat, _ = jax.tree_util.tree_flatten_with_path(plan.network.params)
    shardings = jax.tree.leaves(plan.shardings.params)
    names = jax.tree.leaves(plan.network.axes, is_leaf=lambda x: isinstance(x, tuple))
    for (path, leaf), sharding, axes in zip(flat, shardings, names, strict=True):
        held = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        label = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append((label, str(leaf.shape), _names(axes), _names(sharding.spec), _bytes(held)))
    return table(rows).splitlines()


def memory(plan: Plan) -> list[str]:
    """What the compiler says one device needs, from compiling the dispatch of this plan for shapes alone."""
    found = peak_memory(plan)
    rows = [(name, _bytes(value)) for name, value in found.items()]
    return ["compiled memory of one device", *("  " + line for line in table(rows).splitlines())]


def peak_memory(plan: Plan) -> dict[str, int]:
    """Bytes on one device by the compiler's own analysis; see `program_memory`."""
    return program_memory(plan.compiled())


def program_memory(program: Any) -> dict[str, int]:
    """Bytes on one device of a compiled program: arguments, outputs that are not donated inputs, temporaries, peak."""
    analysis = program.memory_analysis()
    fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": fresh,
        "temporaries": analysis.temp_size_in_bytes,
        "peak": analysis.argument_size_in_bytes + fresh + analysis.temp_size_in_bytes,
    }


def _names(entries: Any) -> str:
    """Axis names as a tuple would print them, with "-" for none."""
    return "(" + ", ".join("-" if x is None else "+".join(x) if isinstance(x, tuple) else str(x) for x in entries) + ")"


def _bytes(count: int) -> str:
    """Bytes with a binary suffix.

    >>> _bytes(3_500_000)
    '3.34 MiB'
    """
    for power, suffix in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.2f} {suffix}"
    return f"{count} B"
