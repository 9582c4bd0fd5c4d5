"""`assay plugin`: what authors of plugins need."""

import argparse
import os
from pathlib import Path

from assay.cli.arguments import add_overrides
from assay.errors import PluginError
from assay.kinds import KINDS

HELP = "Begin a plugin in a package of its own, and check a plugin against everything that its kind must do."
EXAMPLE = (
    "assay plugin new two_layers --kind model\n"
    "  assay plugin check model.two_layers\n"
    "  assay plugin check dataset.text_files --experiment lm.gin --set experiment.seed=1"
)
DEVICES = "--xla_force_host_platform_device_count"
MARKS = {"passed": "ok", "failed": "FAILED", "expected": "expected", "skipped": "skipped"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action and its arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="write a package with a plugin that works, its test and an experiment")
    new.add_argument("name", metavar="NAME", help="the plugin's name in experiments, such as two_layers")
    new.add_argument("--kind", required=True, help=", ".join(kind.name for kind in KINDS))
    new.add_argument(
        "--to", type=Path, default=Path(), metavar="DIR", help="where to make the directory NAME (default: here)"
    )
    check = actions.add_parser("check", help="run the checks of a plugin's kind; 1 when one fails")
    check.add_argument("plugin", metavar="KIND.NAME", help="a plugin as experiments name it")
    check.add_argument("--experiment", metavar="X.gin", help="check the plugin as this experiment configures it")
    add_overrides(check)


def run(args: argparse.Namespace) -> int:
    """Begin a package, or check a plugin."""
    return _new(args) if args.action == "new" else _check(args)


def _new(args: argparse.Namespace) -> int:
    """Write the package, and say what to do next."""
    from assay.templates import package

    directory = package.write(args.name, args.kind, args.to)
    for path in sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file()):
        print(directory / path)
    print(
        f"\nNext: pip install -e '{directory}[dev]', then assay show {args.kind}.{args.name}, then pytest in {directory}"
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    """Print a line for each check as it ends; 1 when one failed."""
    flags = os.environ.get("XLA_FLAGS", "")
    if DEVICES not in flags:  # several devices even where there are none, so that sharding is checked
        os.environ["XLA_FLAGS"] = f"{flags} {DEVICES}=8".strip()
    from assay import config, testing

    kind, _, name = args.plugin.partition(".")
    if not name:
        raise PluginError(f"'{args.plugin}' is not the name of a plugin: write KIND.NAME; `assay list` lists them")
    experiment = config.load(args.experiment, args.overrides).experiment if args.experiment else None
    counts: dict[str, int] = {}
    for result in testing.run(testing.kit_of(kind, name, experiment)):
        counts[result.status] = counts.get(result.status, 0) + 1
        detail = f"\n          {result.detail}" if result.detail else ""
        print(f"{MARKS[result.status]:<8}  {result.name.removeprefix('test_')}: {result.about}{detail}", flush=True)
    print(f"{args.plugin}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return 1 if counts.get("failed") else 0
