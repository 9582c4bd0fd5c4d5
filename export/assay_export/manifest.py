"""manifest.json: what an artifact is, how its programs are called, where it comes from, and the SHA-256 of every other file.

Reading it executes nothing. Its own digest is its last entry, so that a change of it is seen as well.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assay import __version__
from assay.errors import ExportError
from assay.exported import Dim, Exported, Signature, Tensor, Written, bound_of
from assay.runs.files import write_atomically

NAME = "manifest.json"
FORMAT = 1
VERIFIED, UNVERIFIED, FAILED = "verified", "unverified", "failed"
AGAIN = "restore the artifact from a copy, or export the run again"


def described(source: Exported, formats: Mapping[str, Written], further: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's content but for the status and the files. further: entries of the caller, such as tokenizer files."""
    weights = source.weights
    return {
        "format": FORMAT,
        "assay": __version__,
        "programs": {program.name: dataclasses.asdict(program.signature) for program in source.programs},
        "dtype": source.dtype,
        "dims": {name: dataclasses.asdict(dim) for name, dim in source.dims.items()},
        "weights": {
            "arrays": len(weights),
            "parameters": sum(w.size for w in weights.values()),
            "bytes": sum(w.nbytes for w in weights.values()),
            "dtypes": sorted({str(w.dtype) for w in weights.values()}),
        },
        "formats": {name: dataclasses.asdict(written) for name, written in formats.items()},
        "lineage": dict(source.lineage),
        "notes": list(source.notes),
        **further,
    }


def status_of(statuses: Iterable[str]) -> str:
    """Of the artifact: the worst of its formats', "failed", "unverified" or "verified"."""
    found = set(statuses)
    return next((status for status in (FAILED, UNVERIFIED) if status in found), VERIFIED)


def seal(directory: Path, content: Mapping[str, Any], statuses: Mapping[str, str]) -> None:
    """Write the manifest of the files that are in `directory` now.

    statuses: of each format, VERIFIED, FAILED, or UNVERIFIED where nothing has compared it with the model; of those left out too.
    """
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / NAME)
    files = {p.relative_to(directory).as_posix(): _facts(p) for p in paths}
    formats = {name: {**facts, "status": statuses.get(name, UNVERIFIED)} for name, facts in content["formats"].items()}
    status = status_of(facts["status"] for facts in formats.values())
    body = {**content, "formats": formats, "status": status, "files": files}
    write_atomically(directory / NAME, json.dumps(body | {"digest": _digest(body)}, indent=1, allow_nan=False) + "\n")


def read(directory: Path) -> dict[str, Any]:
    """The manifest. Raises ExportError where there is none, or one that is damaged or of another format version."""
    path = directory / NAME
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        digest, version = body.pop("digest"), body["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ExportError(f"{directory} is no artifact: it has no {NAME}; `assay export RUN` makes one") from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ExportError(f"{path} cannot be read: {error}; {AGAIN}") from error
    if version != FORMAT:
        raise ExportError(f"{path} has format {version}, this Assay reads format {FORMAT}; use the Assay that wrote it")
    if digest != _digest(body):
        raise ExportError(f"{path} was changed; {AGAIN}")
    return dict(body)


def damage(directory: Path, content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the artifact's files, a line for each; empty when all are as they were written."""
    there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} - {NAME}
    found = [f"{name} does not belong to the artifact" for name in sorted(there - set(content["files"]))]
    for name, facts in content["files"].items():
        if name not in there:
            found.append(f"{name} is missing")
        elif (size := (directory / name).stat().st_size) != facts["bytes"]:
            found.append(f"{name} has {size} bytes, not {facts['bytes']}")
        elif _facts(directory / name) != facts:
            found.append(f"{name} was changed: another SHA-256")
    return found


def signature_of(content: Mapping[str, Any], program: str) -> Signature:
    """A program's signature. Raises ExportError naming the programs there are."""
    if program not in content["programs"]:
        raise ExportError(f"the artifact has no program '{program}'; it has {', '.join(content['programs'])}")
    found = content["programs"][program]
    inputs, outputs = ({n: _tensor(t) for n, t in found[side].items()} for side in ("inputs", "outputs"))
    return Signature(inputs, outputs, tuple(found["donated"]), tuple((a, b) for a, b in found["at_most"]))


def finite(value: Any) -> Any:
    """As JSON has it: numbers that are not finite are None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_status(content: Mapping[str, Any], name: str) -> str:
    """Of one format; artifacts of 0.1.0 have one for all."""
    return str(content["formats"][name].get("status", content["status"]))


def bound_in(content: Mapping[str, Any], name: str) -> float:
    """The parity gate's bound for one format: its own, or that of the dtype that programs compute in."""
    return float(content["formats"][name]["tolerance"] or bound_of(content.get("dtype", "float32")))


def dims_of(content: Mapping[str, Any]) -> dict[str, Dim]:
    """The dims with their bounds."""
    return {name: Dim(**dim) for name, dim in content["dims"].items()}


def notes(content: Mapping[str, Any]) -> list[str]:
    """What somebody who uses the artifact should know: of its programs, then of its formats, each once."""
    of_formats = (f"{name}: {note}" for name, found in content["formats"].items() for note in found["notes"])
    return list(dict.fromkeys([*content["notes"], *of_formats]))


def _tensor(found: Mapping[str, Any]) -> Tensor:
    return Tensor(tuple(found["shape"]), found["dtype"], found["below"])


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
