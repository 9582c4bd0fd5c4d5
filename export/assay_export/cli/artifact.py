"""`assay artifact`: look at an artifact, check it again, and write it anew."""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from assay.errors import ExportError
from assay.table import table
from assay.train.progress import Status
from assay_export.cli.which import add_artifact, artifact_of

ABOUT = "show, verify or refresh an exported artifact"
HELP = (
    "Show an artifact; verify its files, and that it still computes what it did; refresh one whose programs will expire. "
    "Showing one executes nothing of it."
)
EXAMPLE = "assay artifact show model\n  assay artifact verify latest\n  assay artifact refresh model --out model-2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action and the artifact."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="what it is, without running it")
    show.add_argument("--json", action="store_true", help="print the manifest")
    verify = actions.add_parser(
        "verify", help="check every digest, and compare with the outputs stored in it; 1 where one differs"
    )
    refresh = actions.add_parser("refresh", help="write its StableHLO programs anew, with the jax that there is")
    refresh.add_argument(
        "--transform",
        action="append",
        default=[],
        metavar="NAME",
        help="change the weights first, as `assay export` does",
    )
    refresh.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to make")
    for action in (show, verify, refresh):
        add_artifact(action)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    directory = artifact_of(args)
    if args.action == "show":
        return _show(directory, as_json=args.json)
    return _verify(directory) if args.action == "verify" else _refresh(directory, args.out, args.transform)


def _show(directory: Path, *, as_json: bool) -> int:
    from assay_export import manifest

    content = manifest.read(directory)
    if as_json:
        print(json.dumps(content, indent=1))
        return 0
    lineage, weights = content["lineage"], content["weights"]
    print(f"status   {content['status']}")
    print(f"from     run {lineage.get('run')}, step {lineage.get('step')}")
    print(f"weights  {weights['parameters']:,} parameters, {', '.join(weights['dtypes'])}, {weights['bytes']:,} bytes")
    for name, found in content["formats"].items():
        expires = f"; its programs expire on {found['facts']['expires']}" if "expires" in found["facts"] else ""
        status = manifest.format_status(content, name)
        print(f"{name:<8} {status}; {', '.join(found['programs'])}; needs {', '.join(found['requirements'])}{expires}")
        if found.get("settings"):
            print(" " * 9 + ", ".join(f"{key}={value!r}" for key, value in found["settings"].items()))
    for note in manifest.notes(content):
        print(f"note     {note}")
    dims = content["dims"]
    print(table([("PROGRAM", "", "NAME", "DTYPE", "SHAPE"), *_ports(content)]))
    print("sizes    " + (", ".join(f"{n} {d['low']} to {d['high']}" for n, d in dims.items()) or "all are fixed"))
    return 0


def _ports(content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, program in content["programs"].items():
        for side in ("inputs", "outputs"):
            for port, tensor in program[side].items():
                rows.append((name, side[:-1], port, tensor["dtype"], "(" + ", ".join(map(str, tensor["shape"])) + ")"))
    return rows


def _verify(directory: Path) -> int:
    from assay_export import manifest
    from assay_export.cli.export import outcome, report
    from assay_export.verify import verify

    content = manifest.read(directory)
    with Status() as status:
        showing = functools.partial(status.show, force=True)
        showing("computing digests")
        wrong = manifest.damage(directory, content)
        if wrong:
            raise ExportError("\n".join(f"{directory}: {line}" for line in wrong))
        status.clear()
        print(f"{len(content['files'])} files are as they were written")
        checked = verify(directory, content, showing)
    print(report(checked))
    failed = [name for name in checked if manifest.format_status(content, name) == manifest.FAILED]
    for name in failed:
        print(f"{name:<10} is marked failed since it was written")
    verified = [name for name, c in checked.items() if c.status == manifest.VERIFIED and name not in failed]
    absent = [name for name, c in checked.items() if c.status == manifest.UNVERIFIED]
    print(f"{directory}: {outcome(verified, absent, [n for n in checked if n not in {*verified, *absent}])}")
    return 0 if verified and len(verified) + len(absent) == len(checked) else 1


def _refresh(directory: Path, out: Path, named: list[str]) -> int:
    from assay_export.cli.export import outcome_of, report
    from assay_export.named import transform_of
    from assay_export.refresh import refresh

    with Status() as status:

        def say(line: str) -> None:
            status.clear()
            print(line)

        showing = functools.partial(status.show, force=True)
        checked = refresh(directory, out, [(text, transform_of(text)) for text in named], say, showing)
    print(report(checked))
    print(f"{out}: {outcome_of(checked)}")
    return 1 if any(c.problems for c in checked.values()) else 0
