"""Cases with their live outputs in an artifact, so that it can be checked again without its run."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from assay_export.cases import Case

STORED_BYTES = 4 << 20
OF_EACH_KIND = 3
Kept = tuple[Case, np.ndarray]


def store(found: Sequence[Kept], path: Path) -> None:
    """Write cases with their live outputs: of each kind a real one, and more up to OF_EACH_KIND and STORED_BYTES, smaller ones first."""
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, str] = {}
    for index, (case, live) in enumerate(chosen(found)):
        arrays[f"{index}/live"] = np.ascontiguousarray(live.astype(np.float32))
        arrays |= {f"{index}/inputs/{name}": np.ascontiguousarray(x) for name, x in case.inputs.items()}
        about[str(index)] = json.dumps([case.label, case.kind, dict(case.sizes), case.prompt, case.real])
    save_file(arrays, path, metadata=about)


def chosen(found: Sequence[Kept]) -> list[Kept]:
    """Those to write: real ones first, in each kind from the smallest on; the first of a kind however large it is."""
    room, kinds, kept = STORED_BYTES, collections.Counter[str](), list[Kept]()
    for case, live in sorted(found, key=lambda kept: (not kept[0].real, kept[1].nbytes)):
        size = live.nbytes + sum(x.nbytes for x in case.inputs.values())
        if kinds[case.kind] and (size > room or kinds[case.kind] == OF_EACH_KIND):
            continue
        room -= size
        kinds[case.kind] += 1
        kept.append((case, live))
    return kept


def stored(path: Path) -> list[Kept]:
    """The cases that `store` wrote, in its order."""
    found = []
    file: Any
    with safe_open(path, framework="numpy") as file:
        for index, about in sorted(file.metadata().items(), key=lambda item: int(item[0])):
            label, kind, sizes, prompt, *real = json.loads(about)  # artifacts of 0.1.0 do not say which are real
            names = [n for n in file.keys() if n.startswith(f"{index}/inputs/")]  # noqa: SIM118
            inputs = {n.removeprefix(f"{index}/inputs/"): file.get_tensor(n) for n in names}
            found.append((Case(label, kind, inputs, sizes, prompt, *real), file.get_tensor(f"{index}/live")))
    return found
