"""`assay export`: from a run to an artifact that runs without Assay, checked on the spot."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import devices
from assay.cli.resume import add_run
from assay.errors import ExportError
from assay.runs import RunDirectory, open_run
from assay.train.progress import Status

if TYPE_CHECKING:
    from assay_export.parity import Checked

ABOUT = "make an artifact of a run that runs without Assay, and prove that it computes the same"
HELP = (
    "Write a checkpoint of a run as an artifact: programs in one or more formats, their weights, and what they were checked with. Every "
    "program is run in a fresh process and compared with the live model; 1 where one differs by more than its bound. "
    "`assay list exporter` lists the formats, `assay show exporter.NAME` their settings."
)
EXAMPLE = (
    "assay export latest --to stablehlo --out model\n  assay export latest --to stablehlo --best --max-batch 8\n"
    '  assay export latest --to \'stablehlo(platforms=["cpu"], buckets=[]),onnx(dtype="float16")\''
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the formats, the checkpoint and the bounds."""
    add_run(parser)
    parser.add_argument(
        "--to",
        default="stablehlo",
        metavar="FORMAT,…",
        help="exporter plugins, with settings in parentheses: stablehlo,'onnx(dtype=\"float16\")' (default: stablehlo)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (default: the newest)")
    which.add_argument("--best", action="store_true", help="the best checkpoint, by the experiment's keep_best")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the directory to make (default: exports/step-N in the run)"
    )
    parser.add_argument("--max-batch", type=int, default=32, metavar="N", help="largest batch (default: 32)")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="longest sequence and cache (default: the dataset's rows)"
    )
    parser.add_argument(
        "--examples", type=int, default=512, metavar="N", help="examples over which metrics are compared (default: 512)"
    )
    parser.add_argument(
        "--transform",
        action="append",
        default=[],
        metavar="NAME",
        help="change the weights first, such as int8 or 'int4(group=64)'; may be given several times",
    )
    parser.add_argument(
        "--bisect", action="store_true", help="where the artifact differs, name the first layer that does"
    )


def run(args: argparse.Namespace) -> int:
    """Export, and print what the gate found; 1 where it failed."""
    if args.bisect and args.transform:
        raise ExportError("--bisect names layers of the model as it was trained; leave out --transform, or --bisect")
    for name in ("max_batch", "examples", "max_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ExportError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    found = open_run(args.run, args.root)
    devices.configure()
    from assay_export.export import export
    from assay_export.named import exporters_of, transform_of

    transforms = [(text, transform_of(text)) for text in args.transform]
    exporters = exporters_of(args.to)
    step = _best(found) if args.best else args.step
    limits = {"max_batch": args.max_batch, "max_length": args.max_length, "examples": args.examples}
    chosen: Any = {"step": step, "out": args.out, "bisect": args.bisect, "transforms": transforms, **limits}
    with Status() as status:

        def say(line: str) -> None:
            status.clear()
            print(line)

        out, checked = export(found, exporters, report=say, status=status, **chosen)
    print(report(checked))
    print(f"{out}: {outcome_of(checked)}")
    return 1 if any(c.problems for c in checked.values()) else 0


def outcome_of(checked: "Mapping[str, Checked]") -> str:
    """Which formats hold, in words."""
    of = {
        status: [n for n, c in checked.items() if c.status == status] for status in ("verified", "unverified", "failed")
    }
    return outcome(of["verified"], of["unverified"], of["failed"])


def outcome(verified: Sequence[str], absent: Sequence[str], failed: Sequence[str]) -> str:
    """The same of names: "verified" alone where all formats are."""
    if not absent and not failed:
        return "verified"
    parts = {"verified": verified, "not compared": absent, "FAILED the comparison, and marked so": failed}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


def report(checked: "Mapping[str, Checked]") -> str:
    """A line for each case of each format that is among the worst of its kind, the metrics, and every problem."""
    lines = []
    for name, found in checked.items():
        for kind in dict.fromkeys(row["kind"] for row in found.rows):
            rows = [row for row in found.rows if row["kind"] == kind]
            worst = max(rows, key=lambda row: row["max_abs"])
            agree = [row["argmax"] for row in rows if row["argmax"] is not None]
            share = f"  argmax agrees {100 * min(agree):.2f}%" if agree else ""
            lines.append(
                f"{name:<10} {kind:<8} {len(rows):>3} cases  max abs {worst['max_abs']:.1e}  norm {worst['norm']:.1e}{share}"
                f"  worst: {worst['case']}"
            )
        for metric, (theirs, live) in found.metrics.items():
            lines.append(f"{name:<10} {metric} {theirs:.6f}, live {live:.6f} over {found.examples} examples")
        if found.unchecked:
            lines.append(f"{name:<10} NOT COMPARED with the live model: {found.unchecked}")
        lines += [f"{name:<10} DIFFERS: {problem}" for problem in found.problems]
    return "\n".join(lines)


def _best(run: RunDirectory) -> int:
    """The best checkpoint's step. Raises ExportError where none is kept."""
    from assay.checkpoint.checkpoints import Checkpoints
    from assay.train.launch import recorded

    best = recorded(run).experiment.keep_best
    if best is None:
        raise ExportError(
            f"run {run.id} keeps no best checkpoint (experiment.keep_best is None); choose one with --step N"
        )
    checkpoints = Checkpoints(run.checkpoints, best=best, read_only=True) if run.checkpoints.is_dir() else None
    step = checkpoints.best() if checkpoints else None
    if step is None:
        raise ExportError(f"run {run.id} has no checkpoint with a value of {best.removeprefix('+')} yet")
    return step
