"""From a run to an artifact: restore, trace, write, compare with the live model, mark, and give it its name."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import ExportError
from assay.exported import Exported, bound_of
from assay.kinds import Exporter, Transform
from assay.runs import RunDirectory
from assay.train.launch import evaluated
from assay.train.progress import Status
from assay_export import artifact, manifest, parity, stored
from assay_export.bisect import first_difference
from assay_export.card import card
from assay_export.cases import Case, can_decode, cases
from assay_export.lineage import lineage_of, write_tokenizer
from assay_export.live import Live
from assay_export.parity import Checked
from assay_export.programs import exported
from assay_export.transforms.report import Effect, transformed

EXAMPLE_ROWS = 8


def export(
    run: RunDirectory,
    exporters: Mapping[str, Exporter],
    *,
    step: int | None = None,
    out: Path | None = None,
    max_batch: int = 32,
    max_length: int | None = None,
    examples: int = parity.EXAMPLES,
    bisect: bool = False,
    transforms: Sequence[tuple[str, Transform]] = (),
    report: Callable[[str], None] = print,
    status: Status | None = None,
) -> tuple[Path, dict[str, Checked]]:
    """(the artifact, what the gate found of each format). The artifact is written even where the gate finds it wrong, and marked so.

    step: of the checkpoint, None for the newest. out: None for `exports/step-STEP` in the run. max_batch, max_length: bounds of the
    dynamic dimensions. examples: most for the task's metrics. bisect: name the first layer that differs.
    transforms: applied to the weights in order, each with the text that names it; the gate then compares with the transformed model.
    report: is given lines on what was done. status: shows what is being done.
    Raises RunError, CheckpointError, ExportError.
    """
    if run.status() == "running":
        raise ExportError(f"run {run.id} is still training; wait until it ends, or stop it with Ctrl-C, which saves")
    if out is not None:
        artifact.check_free(out)
    status = status or Status(quiet=True)
    status.show("restoring the checkpoint", force=True)
    plan, state, step = evaluated(run, step)
    out = out or run.path / "exports" / f"step-{step}"
    artifact.check_free(out)
    live = Live(plan, state.variables)
    status.show("tracing the model", force=True)
    rows = live.examples(min(EXAMPLE_ROWS, max_batch))
    limits: Any = {"max_batch": max_batch, "max_length": max_length}
    source = exported(plan, state.variables, rows, lineage_of(run, step), **limits)
    if transforms:
        status.show("transforming the weights", force=True)
    source, live, effects = transformed(source, live, transforms, examples)
    for line in (line for effect in effects for line in effect.lines()):
        report(line)
    with artifact.new(out) as directory:
        tokenizer = write_tokenizer(plan.experiment, plan.spec, directory)
        further = {"tokenizer": tokenizer, **_changes(effects)}
        writing = functools.partial(status.show, force=True)
        content = artifact.fill(directory, source, exporters, further, progress=writing)
        for note in manifest.notes(content):
            report(f"note: {note}")
        found, kept = dict[str, Checked](), list[stored.Kept]()
        for name, exporter in exporters.items():
            written = content["formats"][name]
            bound, held = written["tolerance"] or bound_of(source.dtype), _held(source, written["programs"])
            keep = _keeping(kept, name, held, status)
            absent = parity.unchecked(written["requirements"], bound)
            if absent:  # what it would be compared with stays, for `assay artifact verify` where its requirements are
                for case in cases(held):
                    if case.real:
                        keep(case, case.of_live(live.forward(case.inputs)))
            found[name] = absent or parity.gate(
                directory, name, exporter, held, live, bound=bound, examples=examples, seen=keep
            )
            if found[name].problems and bisect:
                report(first_difference(directory, name, exporter, source, live))
        finish(directory, content, found, kept)
    return out, found


def _keeping(kept: list[stored.Kept], name: str, held: Exported, status: Status) -> Callable[[Case, np.ndarray], None]:
    """What the gate of format `name` gives each case to: what will be stored goes into `kept`, and `status` shows which it is."""
    total, numbers = sum(1 for _ in cases(held)) + can_decode(held), itertools.count(1)

    def keep(case: Case, output: np.ndarray) -> None:
        kept[:] = stored.chosen([*(k for k in kept if k[0].label != case.label), (case, output)])
        number = next(numbers)
        text = f"comparing {name}: case {number} of {total}, {case.label}" + ", then any metrics" * (number == total)
        status.show(text, force=number == 1)

    return keep


def finish(
    directory: Path,
    content: Mapping[str, Any],
    found: Mapping[str, Checked],
    kept: Iterable[stored.Kept],
) -> None:
    """Write what the gate found, the examples and the card, and seal the artifact with the status of each format."""
    statuses = {name: checked.status for name, checked in found.items()}
    whole = manifest.status_of(statuses.values())
    text = json.dumps({"status": whole, "formats": parity.json_of(found)}, indent=1, allow_nan=False)
    (directory / artifact.PARITY).write_text(text + "\n", encoding="utf-8")
    stored.store(list(kept), directory / artifact.CASES)
    (directory / artifact.CARD).write_text(card(content, found), encoding="utf-8")
    manifest.seal(directory, content, statuses)


def _held(source: Exported, programs: Sequence[str]) -> Exported:
    """`source` with those programs only that a format holds."""
    return dataclasses.replace(source, programs=[p for p in source.programs if p.name in programs])


def _changes(effects: Sequence[Effect]) -> dict[str, Any]:
    """The manifest's entry on transforms."""
    return {"transforms": [effect.json() for effect in effects]} if effects else {}
