"""Runs an artifact's programs without Assay: `python run.py PROGRAM --input F.npz --output G.npz`, or `load(directory)` in Python.

Needs numpy and what manifest.json lists under formats/NAME/requirements. Inputs are checked against the manifest's signatures.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np


def load(artifact: Any, name: str | None = None, loader: Any = None) -> Any:
    """(program, {name: array}) -> {name: array} of one format, the first without `name`; bfloat16 may go in as float32."""
    artifact = Path(artifact).absolute()
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    name = name or next(iter(manifest["formats"]))
    if name not in manifest["formats"]:
        raise ValueError(f"the artifact has no format {name!r}; it has {', '.join(manifest['formats'])}")
    module = runpy.run_path(str(loader or artifact / name / "loader.py"))
    call = module["load"](artifact, manifest, manifest["formats"][name]["facts"])
    return lambda program, inputs: call(program, checked(manifest, program, inputs))


def checked(manifest: Any, program: str, inputs: Any) -> dict[str, Any]:
    """The inputs, integers in the signature's dtypes. Raises ValueError for what does not fit the signature."""
    signature = manifest["programs"].get(program)
    if signature is None:
        raise ValueError(f"there is no program {program!r}; there are {', '.join(manifest['programs'])}")
    wanted: Any = signature["inputs"]
    if set(wanted) != set(inputs):
        raise ValueError(f"{program} takes {', '.join(sorted(wanted))}; given were {', '.join(sorted(inputs))}")
    sizes: dict[str, int] = {}
    for name, want in wanted.items():
        _check_shape(f"{program}: input {name!r}", tuple(inputs[name].shape), want["shape"], sizes, manifest["dims"])
    for small, large in signature["at_most"]:
        if sizes[small] > sizes[large]:
            raise ValueError(f"{program}: {small} = {sizes[small]} is more than {large} = {sizes[large]}")
    return {name: _cast(f"{program}: input {name!r}", inputs[name], want, sizes) for name, want in wanted.items()}


def _check_shape(label: str, found: Any, shape: Any, sizes: dict[str, int], dims: Any) -> None:
    if len(found) != len(shape):
        raise ValueError(f"{label} has shape {found}; it must be ({', '.join(map(str, shape))})")
    for n, size in zip(found, shape):  # noqa: B905
        low, high = (size, size) if isinstance(size, int) else (dims[size]["low"], dims[size]["high"])
        if not low <= n <= high or sizes.setdefault(size, n) != n:
            known = sizes.get(size, f"{low} to {high}")
            raise ValueError(f"{label} has shape {found}; it must be ({', '.join(map(str, shape))}), {size} = {known}")


def _cast(label: str, array: Any, want: Any, sizes: dict[str, int]) -> Any:
    found, kind = (d.lstrip("bu").rstrip("0123456789") for d in (str(array.dtype), want["dtype"]))  # uint8 is an int
    if found != kind:
        raise ValueError(f"{label} is {array.dtype}; it must be {want['dtype']}")
    if kind != "int":
        return array
    bounds, below = np.iinfo(want["dtype"]), sizes.get(want["below"], want["below"])
    low, high = (int(bounds.min), int(bounds.max)) if below is None else (0, below - 1)
    if array.size and not low <= int(array.min()) <= int(array.max()) <= high:
        raise ValueError(f"{label} lies in {int(array.min())} … {int(array.max())}; it must lie in {low} … {high}")
    return array.astype(want["dtype"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", nargs="?", default="forward")
    parser.add_argument("--artifact", default=Path(__file__).parent)
    parser.add_argument("--format")
    parser.add_argument("--loader", help="of the format, in place of the artifact's own")
    parser.add_argument("--input", required=True, help="arrays by name, .npz")
    parser.add_argument("--output", default="outputs.npz")
    args = parser.parse_args()
    try:
        with np.load(args.input, allow_pickle=False) as arrays:
            found = load(args.artifact, args.format, args.loader)(args.program, dict(arrays))
        outputs: Any = {name: np.asarray(x) for name, x in found.items()}
        with Path(args.output).open("wb") as file:
            np.savez(file, **{n: x.astype("f4") if str(x.dtype) == "bfloat16" else x for n, x in outputs.items()})
    except Exception as error:
        sys.exit(f"run.py: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
