"""`assay predict`: the outputs of an artifact's program, in whatever format it has."""

import argparse
import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from assay.errors import ExportError
from assay.exported import FLOATS
from assay.runs.files import replacing
from assay_export.cli.which import add_artifact, artifact_of

ABOUT = "run an exported artifact on inputs from a file"
HELP = (
    "Run a program of an artifact on named arrays, from .npz, .npy (where there is one input) or .json, which are checked against the "
    "signature. The outputs are written as .npz, or printed. A text artifact continues --text, greedily."
)
EXAMPLE = (
    'assay predict model --input rows.npz --output logits.npz\n  assay predict model --text "def " --length 40\n'
    "  assay predict model --input rows.json --format onnx"
)

UNREADABLE = (
    *(OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError),
    *(EOFError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and json raise for a file that is none of theirs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The artifact, what to run, and the inputs."""
    add_artifact(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, metavar="F", help="named arrays: .npz, .npy or .json")
    given.add_argument("--text", help="what to continue, for an artifact with a tokenizer, prefill and decode")
    parser.add_argument("--length", type=int, default=40, metavar="N", help="tokens to add to --text (default: 40)")
    parser.add_argument("--format", help="one of the artifact's formats (default: the first that holds the program)")
    parser.add_argument("--program", default="forward", help="one of its programs (default: forward)")
    parser.add_argument("--output", type=Path, metavar="G.npz", help="where to write the outputs (default: print JSON)")


def run(args: argparse.Namespace) -> int:
    """Check the artifact, run it, write or print."""
    from assay_export import artifact

    if args.text is not None and args.output is not None:
        raise ExportError("--output is of arrays, and --text prints text; leave out --output, or give --input")
    args.artifact = artifact_of(args)
    content = artifact.opened(args.artifact, args.format)
    if args.text is not None:
        print(args.text + _continued(args, content))
        return 0
    inputs = _read(args.input, content, args.program)
    runner = _opened(args, content, args.program)
    if args.output is None:
        print(json.dumps({n: x.tolist() for n, x in _plain(runner(args.program, inputs)).items()}))
        return 0
    with _written(args.output) as file:
        np.savez(file, **_plain(runner(args.program, inputs)))  # type: ignore[arg-type]
    print(args.output)
    return 0


def _opened(args: argparse.Namespace, content: Any, *programs: str) -> Any:
    """The format that was asked for, or the first that holds the programs and did not fail. Raises ExportError naming those that do."""
    from assay_export.manifest import FAILED, format_status
    from assay_export.named import exporter_of
    from assay_export.runners import opened

    formats = {n: f for n, f in content["formats"].items() if format_status(content, n) != FAILED}
    holding = [name for name, found in formats.items() if set(programs) <= set(found["programs"])]
    if not holding:
        raise ExportError(f"no format of {args.artifact} holds {' and '.join(programs)}; export the run again")
    name = args.format or holding[0]
    if name not in holding:
        which = " or ".join(f"--format {name}" for name in holding)
        raise ExportError(f"format {name} does not hold {' and '.join(programs)}; use {which}")
    try:
        return opened(args.artifact, name, exporter_of(content, name))
    except ImportError as error:
        raise ExportError(
            f"format {name} needs {', '.join(formats[name]['requirements'])}: {error}; install them, or choose another --format"
        ) from error


def _continued(args: argparse.Namespace, content: Any) -> str:
    from assay_export import manifest
    from assay_export.cases import greedy
    from assay_export.lineage import encoder_of

    encoder = encoder_of(content, args.artifact)
    if encoder is None or not {"prefill", "decode"} <= set(content["programs"]):
        raise ExportError(
            f"{args.artifact} has no tokenizer, or no prefill and decode: it continues no text; use --input"
        )
    runner = _opened(args, content, "prefill", "decode")
    prompt = encoder.encode(args.text).astype(np.int32)
    if not prompt.size:
        raise ExportError("--text has no tokens; write at least one character")
    dims = manifest.dims_of(content)
    most = dims["cache"].high if "cache" in dims else dims["seq"].high
    room = most - len(prompt)
    if args.length < 1 or args.length > room:
        raise ExportError(
            f"--length {args.length}: the artifact holds {most} tokens, and the text has {len(prompt)}; must be from 1 to {room}"
        )
    signatures = {name: manifest.signature_of(content, name) for name in content["programs"]}
    sizes = {"batch": 1, "cache": len(prompt) + args.length}
    (tokens,), _ = greedy(runner, prompt[None], args.length, signatures, sizes)
    return encoder.decode(tokens)[len(encoder.decode(prompt)) :]


def _read(path: Path, content: Any, program: str) -> dict[str, np.ndarray]:
    """The arrays in a file, numbers of JSON in the signature's dtypes. Raises ExportError for one that cannot be read."""
    from assay_export.manifest import signature_of

    inputs = signature_of(content, program).inputs
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix == ".npy":
            return {next(iter(inputs)): np.load(path, allow_pickle=False)}
        found = json.loads(path.read_text(encoding="utf-8"))
        floating = {n for n, t in inputs.items() if t.dtype in FLOATS}  # where JSON may say 1; an integer is no 1.5
        return {n: np.asarray(x, np.float32 if n in floating else None) for n, x in found.items()}
    except UNREADABLE as error:
        raise ExportError(f"{path} cannot be read as named arrays: {error}; give .npz, .npy or .json") from error


def _plain(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In dtypes that numpy has."""
    return {n: x.astype(np.float32) if str(x.dtype) == "bfloat16" else x for n, x in outputs.items()}


@contextlib.contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends, opened at once: what cannot be written is said before anything is computed."""
    from assay_export.artifact import check_beside

    check_beside(path, "--output")
    if path.is_dir():
        raise ExportError(f"{path} is a directory; name a file with --output")
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}; choose another file with --output") from error
