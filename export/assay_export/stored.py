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


def store(found: Sequence[tuple[Case, np.ndarray]], path: Path) -> None:
    """Write cases with their live outputs, the smallest of each kind, and more of it up to OF_EACH_KIND and STORED_BYTES."""
    room, kinds = STORED_BYTES, collections.Counter[str]()
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, str] = {}
    for index, (case, live) in enumerate(sorted(found, key=lambda pair: pair[1].nbytes)):
        size = live.nbytes + sum(x.nbytes for x in case.inputs.values())
        if kinds[case.kind] and (size > room or kinds[case.kind] == OF_EACH_KIND):
            continue
        room -= size
        kinds[case.kind] += 1
        arrays[f"{index}/live"] = np.ascontiguousarray(live.astype(np.float32))
        arrays |= {f"{index}/inputs/{name}": np.ascontiguousarray(x) for name, x in case.inputs.items()}
        about[str(index)] = json.dumps([case.label, case.kind, dict(case.sizes), case.prompt])
    save_file(arrays, path, metadata=about)


def stored(path: Path) -> list[tuple[Case, np.ndarray]]:
    """The cases that `store` wrote."""
    found = []
    file: Any
    with safe_open(path, framework="numpy") as file:
        for index, about in file.metadata().items():
            label, kind, sizes, prompt = json.loads(about)
            names = [n for n in file.keys() if n.startswith(f"{index}/inputs/")]  # noqa: SIM118
            inputs = {n.removeprefix(f"{index}/inputs/"): file.get_tensor(n) for n in names}
            found.append((Case(label, kind, inputs, sizes, prompt), file.get_tensor(f"{index}/live")))
    return found
