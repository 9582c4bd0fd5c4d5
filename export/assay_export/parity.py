"""The gate: every program of an artifact, run in a fresh process, against the live model on real and random examples.

Nothing is taken on trust: an artifact that differs by more than its bound is marked failed, and so is one that cannot be run.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement

from assay.errors import ExportError
from assay.exported import Exported, Runner, Signature
from assay.kinds import Exporter
from assay_export.cases import OUTPUT, Case, cases, played, steps_case
from assay_export.compare import Difference, bound_of, difference
from assay_export.live import Live
from assay_export.runners import Process

METRIC_FACTOR = 50.0  # a metric may differ by this many bounds: accuracy turns over at a near tie
EXAMPLES = 512
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Checked:
    """What the gate found of one format. problems: empty where it holds. metrics: name -> (of the artifact, live).

    unchecked: why nothing was compared, where that is so.
    """

    bound: float
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, tuple[float, float]]
    examples: int
    problems: Sequence[str]
    unchecked: str | None = None

    @property
    def worst(self) -> float:
        """The largest max_abs."""
        return max((row["max_abs"] for row in self.rows), default=math.inf)


def gate(
    artifact: Path,
    name: str,
    exporter: Exporter,
    source: Exported,
    live: Live,
    *,
    bound: float | None = None,
    examples: int = EXAMPLES,
    seen: Callable[[Case, np.ndarray], None] = lambda case, output: None,
) -> Checked:
    """Compare format `name` of an artifact with the live model.

    bound: of max_abs relative to the largest live magnitude; None for the one of the weights' dtype. examples: most for the task's
    metrics. seen: is given each case with the live output.
    """
    bound = bound or bound_of(w.dtype for w in source.weights.values())
    signatures = {p.name: p.signature for p in source.programs}
    called: set[str] = set()
    with Process(artifact, name, exporter) as process:
        rows = list[dict[str, Any]]()

        def run(program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            called.add(program)
            return process(program, inputs)

        try:
            for case in _all(source, run):
                expected = case.of_live(live.forward(case.inputs))
                seen(case, expected)
                rows.append(row_of(case, difference(played(run, case, signatures), expected), bound))
            metrics, count = _metrics(run, source, live, examples)
        except ExportError as error:
            return Checked(bound, rows, {}, 0, [str(error)])
    problems = [problem_of(row, bound) for row in rows if not row["ok"]]
    problems += [f"{program} was exported, and nothing compared it" for program in signatures if program not in called]
    return Checked(bound, rows, metrics, count, [*problems, *_metric_problems(metrics, bound)])


def unchecked(requirements: Sequence[str], bound: float) -> Checked | None:
    """What is found of a format whose loader needs what is not installed here; None where all of it is."""
    absent = [requirement for requirement in requirements if not _installed(Requirement(requirement))]
    if not absent:
        return None
    return Checked(bound, [], {}, 0, [], f"its loader needs {', '.join(absent)}, which is not installed here")


def _installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def again(
    artifact: Path,
    name: str,
    exporter: Exporter,
    signatures: Mapping[str, Signature],
    kept: Sequence[tuple[Case, np.ndarray]],
    bound: float,
) -> Checked:
    """Compare the format with the live outputs that were stored when it was written; no run is needed."""
    rows: list[dict[str, Any]] = []
    with Process(artifact, name, exporter) as run:
        try:
            for case, expected in kept:
                rows.append(row_of(case, difference(played(run, case, signatures), expected), bound))
        except ExportError as error:
            return Checked(bound, rows, {}, 0, [str(error)])
    return Checked(bound, rows, {}, 0, [problem_of(row, bound) for row in rows if not row["ok"]])


def row_of(case: Case, found: Difference, bound: float) -> dict[str, Any]:
    """One line of parity.json."""
    ok = found.finite and found.max_abs <= bound
    return {"case": case.label, "kind": case.kind, **dataclasses.asdict(found), "ok": ok}


def problem_of(row: Mapping[str, Any], bound: float) -> str:
    """What is wrong, in words."""
    if not math.isfinite(row["max_abs"]):
        return f"{row['case']}: the output has another shape, or numbers that are not finite"
    return f"{row['case']}: off by {row['max_abs']:.2e} of the largest output, and the bound is {bound:.0e}"


def json_of(found: Mapping[str, Checked]) -> dict[str, Any]:
    """The content of parity.json; numbers that are not finite are None."""
    return {name: _finite(dataclasses.asdict(checked)) for name, checked in found.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _all(source: Exported, run: Runner) -> Iterator[Case]:
    yield from cases(source)
    steps = steps_case(source, run)
    if steps is not None:
        yield steps


def _metrics(run: Runner, source: Exported, live: Live, most: int) -> tuple[dict[str, tuple[float, float]], int]:
    """(metric -> (of the artifact, live), examples) over the evaluation split; nothing where the objective calls the network otherwise."""
    signature = source.program("forward").signature
    bounds = {name: dim.high for name, dim in source.dims.items()}
    if any(
        n > most
        for name, t in signature.inputs.items()
        for n, most in zip(source.examples[name].shape[1:], t.at(bounds)[1:], strict=True)
    ):
        return {}, 0  # rows of the dataset are longer than what is exported
    size = min(source.dims["batch"].high, 32) if "batch" in signature.dims else 1

    def answer(shown: Mapping[str, Any]) -> Any:
        return run("forward", {name: np.asarray(shown[name]) for name in signature.inputs})[OUTPUT]

    found, expected = (live.metrics(call, size, most) for call in (answer, live.forward))
    if found is None or expected is None:  # a Bayesian network, say
        return {}, 0
    return {name: (found[0][name], value) for name, value in expected[0].items()}, expected[1]


def _metric_problems(metrics: Mapping[str, tuple[float, float]], bound: float) -> list[str]:
    return [
        f"{name} is {found:.6f}, and {live:.6f} of the live model"
        for name, (found, live) in metrics.items()
        if not (math.isnan(found) and math.isnan(live))
        and not abs(found - live) <= METRIC_FACTOR * bound * max(1.0, abs(live))
    ]
