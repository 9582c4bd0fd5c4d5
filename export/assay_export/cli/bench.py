"""`assay bench`: how fast an artifact is, in each of its formats, and beside the live model."""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import devices
from assay.errors import ExportError
from assay_export.cli.which import add_artifact, artifact_of

if TYPE_CHECKING:
    from assay_export.bench import Call, Measured

ABOUT = "measure the latency and throughput of an exported artifact"
HELP = (
    "Time an artifact's programs over batch and sequence, in every format that can run here, and the live model of its run beside them. "
    "They take turns, so that a machine that changes its speed changes it for all. Latencies are percentiles over all calls; rates "
    "are those at the median. The first call, which loads and compiles, stands alone."
)
EXAMPLE = (
    "assay bench latest\n  assay bench model --format onnx --program decode --batch 1 --seq 64,512\n"
    "  assay bench model --json bench.json --plot bench.png"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The artifact, what of it, at what sizes, and where the results go."""
    add_artifact(parser)
    parser.add_argument("--format", type=_names, metavar="FORMAT,…", help="formats (default: all that can run here)")
    parser.add_argument("--program", type=_names, metavar="NAME,…", help="programs (default: all)")
    parser.add_argument("--batch", type=_sizes, metavar="N,…", help="rows at once (default: 1 and 8)")
    parser.add_argument(
        "--seq",
        type=_sizes,
        metavar="N,…",
        help="tokens in a row, and for decode in the cache (default: a quarter of the bound, and the bound)",
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns that each format takes (default: 9)")
    parser.add_argument(
        "--live",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the model of the artifact's run beside it, if it is still there (default: yes)",
    )
    parser.add_argument("--json", type=Path, metavar="F.json", help="where to write results, machine and versions")
    parser.add_argument("--plot", type=Path, metavar="F.png", help="where to draw milliseconds by length")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name for name in text.split(",") if name))


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': must be numbers with commas between them, such as 1,8") from None


def run(args: argparse.Namespace) -> int:
    """Check everything, measure, print."""
    _check(args)
    from assay_export import artifact, manifest

    args.artifact = artifact_of(args)
    content = artifact.opened(args.artifact)
    devices.configure()
    from assay_export import bench, bench_report, bench_sides

    programs = args.program or list(content["programs"])
    signatures = {name: manifest.signature_of(content, name) for name in programs}
    settings = bench.settings(signatures, manifest.dims_of(content), args.batch, args.seq)
    formats = bench_sides.formats(args.artifact, content, args.format, _say)
    live, about = (
        bench_sides.live(content, args.root) if args.live else ({}, "not compared with the live model: --no-live")
    )
    _say(about)
    found: list[Measured] = []
    for number, setting in enumerate(settings, 1):
        held = {name: call for name, call in formats.items() if setting.program in content["formats"][name]["programs"]}
        calls = held | ({bench.LIVE: _of_live(live[setting.program])} if held and setting.program in live else {})
        if not held:
            _say(f"{number}/{len(settings)} {setting.program}: in none of {', '.join(formats)}")
            continue
        sizes = ", ".join(f"{name} {size}" for name, size in setting.sizes.items())
        context = f", context {setting.context}" if setting.context else ""
        _say(f"{number}/{len(settings)} {setting.program}: {sizes or 'fixed sizes'}{context}")
        found += bench.measured(calls, setting, signatures[setting.program], args.rounds)
    if not found:
        raise ExportError(f"none of {', '.join(formats)} has any of {', '.join(programs)}; choose other ones")
    print(bench_report.text(found))
    print(about)
    what = {"artifact": args.artifact.name, "lineage": content["lineage"], "live": about, "rounds": args.rounds}
    _write(args, bench_report.as_json(found, what), found)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise ExportError for what would fail only after the measuring."""
    if args.rounds < 1:
        raise ExportError(f"--rounds {args.rounds}: must be at least 1")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path is None:
            continue
        where = path.absolute().parent
        if path.is_dir() or not where.is_dir() or not os.access(path if path.exists() else where, os.W_OK):
            raise ExportError(f"{option} {path} cannot be written; name a file in a directory that you may write to")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ExportError("--plot needs matplotlib: pip install 'assay[plot]'")


def _of_live(call: Any) -> "Call":
    return lambda program, inputs: call(inputs)


def _write(args: argparse.Namespace, content: dict[str, Any], found: "Sequence[Measured]") -> None:
    from assay.runs.files import write_atomically
    from assay_export import bench_report

    if args.json is not None:
        write_atomically(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if args.plot is not None:
        bench_report.plot(found, args.plot)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
