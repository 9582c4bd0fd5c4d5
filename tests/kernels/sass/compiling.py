"""Compiling for an H200, and what ptxas says of each Mosaic kernel on the way."""

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any

from assay_kernels import audit, disagreements, recording
from assay_kernels.aot import compile_for_h200

os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)_mosaic_gpu_kernel'.*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
CALLED = re.compile(
    r'custom_call_target="mosaic_gpu\w*".*?op_name="[^"]*?([\w.-]+)/(?:mpmd_map|core_map|pallas_call)[^"]*"'
)
heard: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Mosaic kernel in a program. registers: of a CUDA thread, at entry. spilled: bytes that went to memory for lack of them."""

    name: str
    registers: int
    spilled: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """choices: "op.implementation", as chosen, each found in the program. kernels: names of the Mosaic kernels in it.

    temp: bytes of temporary memory. custom_calls: XLA's names.
    """

    choices: tuple[str, ...]
    kernels: frozenset[str]
    temp: int
    custom_calls: frozenset[str]


def compiled(capfd: Any, function: Callable[..., Any], *arguments: Any) -> Compiled:
    """Compile `function`; fails where the program holds other implementations than were chosen, or a kernel spills registers."""
    capfd.readouterr()
    with recording() as choices:
        program = compile_for_h200(function, *arguments)
    said = "".join(capfd.readouterr())
    found = [Kernel(m["name"], int(m["registers"]), int(m["stores"]) + int(m["loads"])) for m in ENTRY.finditer(said)]
    audited = audit(program)
    assert disagreements(choices, audited) == []
    assert [k for k in found if k.spilled] == []
    heard.update(k.name for k in found)  # a kernel that this process compiled before is not compiled again
    kernels = frozenset(CALLED.findall(program.as_text()))
    assert kernels <= heard, f"ptxas said nothing of {', '.join(kernels - heard)}"
    assert bool(kernels) == ("mosaic_gpu_v2" in audited.custom_calls)
    names = tuple(f"{c.op}.{c.implementation}" for c in choices)
    temp = program.memory_analysis().temp_size_in_bytes
    print(f"{', '.join(names)}: {temp / 2**20:.1f} MiB temporary; {', '.join(map(str, found))}")
    return Compiled(names, kernels, temp, audited.custom_calls)
