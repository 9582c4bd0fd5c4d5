"""Runs an artifact's programs for whoever started this process: answers a line on standard output for each on standard input.

A request is [program, inputs, outputs], the names of two .npz files; the answer is null or what went wrong. What comes in place of a
donated array, such as a cache, stays here: it is written nowhere, and is taken as the input of its name where the file has none. A request
of "forget" frees what has been compiled, and one of "reload" weights too, which are read again. Imports nothing of Assay, whose packages
this Python need not have.
"""

import argparse
import ctypes
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Answer requests until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--artifact", "--format", "--loader"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    programs = json.loads(Path(args.artifact, "manifest.json").read_text(encoding="utf-8"))["programs"]
    load = runpy.run_path(str(Path(__file__).with_name("run.py")))["load"]
    call = load(args.artifact, args.format, args.loader)
    held: dict[str, Any] = {}
    for request in map(json.loads, sys.stdin):
        problem = None
        try:
            if request == "reload":
                held.clear()
                call = None
                call = load(args.artifact, args.format, args.loader)
            if request in ("forget", "reload"):
                forget()
            else:
                answer(call, request, held, programs)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        print(json.dumps(problem), file=answers, flush=True)


def answer(call: Any, request: Any, held: dict[str, Any], programs: Any) -> None:
    """Run one program. held: what stays, by name."""
    program, source, target = request
    donated = programs.get(program, {}).get("donated", [])
    with np.load(source, allow_pickle=False) as arrays:
        found = call(program, {**{name: held.pop(name) for name in donated if name in held}, **arrays})
    held |= {name: found.pop(name) for name in donated}
    outputs: Any = {name: np.asarray(x) for name, x in found.items()}
    with Path(target).open("wb") as file:
        np.savez(file, **{n: x.astype("f4") if str(x.dtype) == "bfloat16" else x for n, x in outputs.items()})


def forget() -> None:
    """Free compiled programs: jax keeps one for every shape that it has seen."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    trim()


def trim() -> None:
    """Give freed memory back to the system; glibc keeps what lies between blocks that are in use."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


if __name__ == "__main__":
    main()
