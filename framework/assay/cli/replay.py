"""`assay replay`: one step of a run again, parameter by parameter."""

import argparse
import dataclasses
import math

from assay import devices
from assay.cli.resume import add_run
from assay.runs import open_run
from assay.runs.metrics import encode
from assay.table import table

HELP = (
    "Do one step of a run again, from the newest whole checkpoint before it (or from the beginning), and print what it does to each "
    "parameter: norms, gradients, the update. The run stays as it is."
)
EXAMPLE = "assay replay latest --step 12"
_HEADER = ("PARAMETER", "SIZE", "NORM", "GRADIENT", "LARGEST", "FINITE", "UPDATE", "UPDATE/NORM")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the step, and the output's form."""
    add_run(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", required=True, help="which step, as the log counts them, from 1"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the step."""
    found = open_run(args.run, args.root)
    devices.configure()
    from assay.train.launch import recorded
    from assay.train.replay import replay

    devices.configure(deterministic=recorded(found).experiment.deterministic)
    what = replay(found, args.step)
    if args.json:
        print(encode(dataclasses.asdict(what)))
        return 0
    begun = f"checkpoint {what.begun}" if what.begun else "the beginning"
    print(f"{what.run}  step {what.step}, from {begun}")
    print(f"{'batch':<13} {what.batch}{_DUMPED[what.dumped]}, examples {_shortened(what.examples)}")
    for name, value in what.metrics.items():
        print(f"{name:<13} {value:.7g}{_logged(value, what.logged) if name == 'loss' else ''}")
    print(f"{'fault':<13} {what.fault or 'none'}\n")
    rows = [
        (
            name,
            f"{numbers['size']:,}",
            *(f"{numbers[key]:.3e}" for key in ("parameter", "gradient", "largest")),
            f"{100 * numbers['finite']:.4g} %",
            f"{numbers['update']:.3e}",
            f"{numbers['update'] / numbers['parameter']:.1e}" if numbers["parameter"] else "-",
        )
        for name, numbers in what.layers.items()
    ]
    print(table([_HEADER, *rows]))
    return 0


_DUMPED = {None: "", True: " (the one in the dump)", False: " (NOT the one in the dump)"}


def _logged(loss: float, logged: float | None) -> str:
    """How the loss compares with the log's."""
    if logged is None:
        return "  (not in the log)"
    if loss == logged or (math.isnan(loss) and math.isnan(logged)):
        return "  (as logged)"
    return f"  (logged {logged:.7g}, differs by {abs(loss - logged) / max(abs(logged), 1e-30):.1e} of it)"


def _shortened(numbers: list[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (f", … ({len(numbers)})" if len(numbers) > most else "")
