"""`assay predict`: the outputs of an artifact's program, in whatever format it has."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import ExportError

ABOUT = "run an exported artifact on inputs from a file"
HELP = (
    "Run a program of an artifact on named arrays, from .npz, .npy (where there is one input) or .json, which are checked against the "
    "signature. The outputs are written as .npz, or printed. A text artifact continues --text, greedily."
)
EXAMPLE = (
    'assay predict model --input rows.npz --output logits.npz\n  assay predict model --text "def " --length 40\n'
    "  assay predict model --input rows.json --format onnx"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The artifact, what to run, and the inputs."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="a directory that `assay export` made")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, metavar="F", help="named arrays: .npz, .npy or .json")
    given.add_argument("--text", help="what to continue, for an artifact with a tokenizer, prefill and decode")
    parser.add_argument("--length", type=int, default=40, metavar="N", help="tokens to add to --text (default: 40)")
    parser.add_argument("--format", help="one of the artifact's formats (default: its first)")
    parser.add_argument("--program", default="forward", help="one of its programs (default: forward)")
    parser.add_argument("--output", type=Path, metavar="G.npz", help="where to write the outputs (default: print JSON)")


def run(args: argparse.Namespace) -> int:
    """Check the artifact, run it, write or print."""
    from assay_export import artifact
    from assay_export.runners import exporter_of, opened

    content = artifact.opened(args.artifact)
    name = args.format or next(iter(content["formats"]))
    if name not in content["formats"]:
        raise ExportError(f"{args.artifact} has no format '{name}'; it has {', '.join(content['formats'])}")
    runner = opened(args.artifact, name, exporter_of(name))
    if args.text is not None:
        print(args.text + _continued(args, content, runner))
        return 0
    outputs = runner(args.program, _read(args.input, content, args.program))
    plain = {n: x.astype(np.float32) if str(x.dtype) == "bfloat16" else x for n, x in outputs.items()}
    if args.output is None:
        print(json.dumps({n: x.tolist() for n, x in plain.items()}))
    else:
        _write(args.output, plain)
    return 0


def _continued(args: argparse.Namespace, content: Any, runner: Any) -> str:
    from assay_export import manifest
    from assay_export.cases import greedy
    from assay_export.lineage import encoder_of

    encoder = encoder_of(content, args.artifact)
    if encoder is None or not {"prefill", "decode"} <= set(content["programs"]):
        raise ExportError(
            f"{args.artifact} has no tokenizer, or no prefill and decode: it continues no text; use --input"
        )
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
    tokens = greedy(runner, prompt[None], args.length, signatures, {"batch": 1, "cache": len(prompt) + args.length})[0]
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
        return {n: np.asarray(x, _dtype(inputs[n].dtype) if n in inputs else None) for n, x in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ExportError(f"{path} cannot be read as named arrays: {error}; give .npz, .npy or .json") from error


def _dtype(name: str) -> str:
    return "float32" if name == "bfloat16" else name


def _write(path: Path, outputs: dict[str, np.ndarray]) -> None:
    try:
        with path.open("wb") as file:
            np.savez(file, **outputs)  # type: ignore[arg-type]
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from error
    print(path)
