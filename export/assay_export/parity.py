"""The gate: every program of an artifact, run in a fresh process, against the live model on real and random examples.

Nothing is taken on trust: an artifact that differs by more than its bound is marked failed, and so is one that cannot be run.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import ExportError
from assay.exported import OUTPUT, Exported, Runner, Signature, absent, bound_of
from assay.kinds import Exporter
from assay_export.cases import MOST_NUMBERS, Case, cases, played, steps_case
from assay_export.compare import Difference, difference
from assay_export.live import Live, Scores
from assay_export.manifest import FAILED, UNVERIFIED, VERIFIED, finite
from assay_export.runners import Process

EXAMPLES = 512
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Checked:
    """What the gate found of one format. problems: empty where it holds. metrics: name -> (of the artifact, live), over `examples`.

    turned: share of the examples' items whose likeliest class was another one. unchecked: why nothing was compared, where that is so.
    """

    bound: float
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, tuple[float, float]]
    examples: int
    problems: Sequence[str]
    unchecked: str | None = None
    turned: float = 0.0

    @property
    def status(self) -> str:
        """Of the format in the manifest: FAILED, UNVERIFIED where nothing was compared, or VERIFIED."""
        return FAILED if self.problems else UNVERIFIED if self.unchecked else VERIFIED

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

    bound: of each Difference; None for the one of the dtype that is computed in. examples: most for the task's metrics, whose outputs are
    compared too. seen: is given each case with the live output.
    """
    bound = bound or bound_of(source.dtype)
    signatures = {p.name: p.signature for p in source.programs}
    called: list[str] = []
    # One thread: a model may keep state while it is traced, as NumPyro's do.
    with Process(artifact, name, exporter) as process, ThreadPoolExecutor(1) as beside:
        rows = list[dict[str, Any]]()

        def expected_of(case: Case) -> np.ndarray:
            return case.of_live(live.forward(case.inputs))

        def compared(case: Case, output: np.ndarray, expected: np.ndarray) -> None:
            seen(case, expected)
            rows.append(row_of(case, difference(output, expected), bound))

        def run(program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if called and ("forward" in called[-1:]) != (program == "forward"):
                process.reload()  # each program may hold the weights
            called.append(program)
            return process(program, inputs)

        try:
            ordered = sorted(cases(source), key=lambda case: case.kind != "forward")
            left = iter(ordered)
            live.forget()
            coming = collections.deque(beside.submit(expected_of, case) for case in itertools.islice(left, 2))
            for case in ordered:
                output = played(run, case, signatures)
                compared(case, output, coming.popleft().result())
                process.forget()  # another case has other sizes
                live.forget()
                coming.extend(beside.submit(expected_of, following) for following in itertools.islice(left, 1))
            steps = steps_case(source, run)
            if steps is not None:
                compared(*steps, expected_of(steps[0]))
            scores = _scores(run, source, live, examples, lambda case, off: rows.append(row_of(case, off, bound)))
        except ExportError as error:
            return Checked(bound, rows, {}, 0, [str(error)])
    problems = [problem_of(row, bound) for row in rows if not row["ok"]]
    problems += _never(signatures, called)
    if scores is None:
        return Checked(bound, rows, {}, 0, problems)
    theirs, ours = scores.values
    metrics = {name: (theirs[name], value) for name, value in ours.items()}
    problems += metric_problems(metrics, bound, scores.turned)
    return Checked(bound, rows, metrics, scores.examples, problems, turned=scores.turned)


def unchecked(requirements: Sequence[str], bound: float) -> Checked | None:
    """What is found of a format whose loader needs what is not installed here; None where all of it is."""
    missing = absent(requirements)
    if not missing:
        return None
    return Checked(bound, [], {}, 0, [], f"its loader needs {', '.join(missing)}, which is not installed here")


def again(
    artifact: Path,
    name: str,
    exporter: Exporter,
    signatures: Mapping[str, Signature],
    kept: Sequence[tuple[Case, np.ndarray]],
    bound: float,
    progress: Report,
) -> Checked:
    """Compare the format with the live outputs that were stored when it was written; no run is needed."""
    rows: list[dict[str, Any]] = []
    called: set[str] = set()
    with Process(artifact, name, exporter) as process:

        def run(program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            called.add(program)
            return process(program, inputs)

        try:
            for number, (case, expected) in enumerate(kept, 1):
                progress(f"comparing {name}: case {number} of {len(kept)}, {case.label}")
                rows.append(row_of(case, difference(played(run, case, signatures), expected), bound))
        except ExportError as error:
            return Checked(bound, rows, {}, 0, [str(error)])
    problems = [problem_of(row, bound) for row in rows if not row["ok"]]
    return Checked(bound, rows, {}, 0, problems + _never(signatures, called))


def _never(signatures: Iterable[str], called: Collection[str]) -> list[str]:
    return [f"{program} was exported, and nothing compared it" for program in signatures if program not in called]


def row_of(case: Case, found: Difference, bound: float) -> dict[str, Any]:
    """One line of parity.json."""
    return {"case": case.label, "kind": case.kind, **dataclasses.asdict(found), "ok": found.within(bound)}


def problem_of(row: Mapping[str, Any], bound: float) -> str:
    """What is wrong, in words."""
    if not math.isfinite(row["max_abs"]):
        return f"{row['case']}: the output has another shape, or numbers that are not finite"
    if row["max_abs"] > bound:
        return f"{row['case']}: off by {row['max_abs']:.2e} of the largest output, and the bound is {bound:.0e}"
    if row["norm"] > bound:
        return f"{row['case']}: off by {row['norm']:.2e} of the output's norm, and the bound is {bound:.0e}"
    return (
        f"{row['case']}: the likeliest is another one where it leads by {row['margin']:.2e} of the largest output, and no near tie: the "
        f"bound is {bound:.0e}"
    )


def json_of(found: Mapping[str, Checked]) -> dict[str, Any]:
    """The content of parity.json; numbers that are not finite are None."""
    return {name: finite(dataclasses.asdict(checked)) for name, checked in found.items()}


def _scores(
    run: Runner, source: Exported, live: Live, most: int, compared: Callable[[Case, Difference], None]
) -> Scores | None:
    """Loss and metrics (of the artifact, live) over the evaluation split; None where the objective calls the network otherwise.

    compared: is given how far each output is from the live one.
    """
    signature = source.program("forward").signature
    bounds = {name: dim.high for name, dim in source.dims.items()}
    if any(
        n > most
        for name, t in signature.inputs.items()
        for n, most in zip(source.examples[name].shape[1:], t.at(bounds)[1:], strict=True)
    ):
        return None  # rows of the dataset are longer than what is exported
    row = math.prod(
        n if isinstance(n, int) else {**bounds, "batch": 1}.get(n, 1) for n in signature.outputs[OUTPUT].shape
    )
    size = min(source.dims["batch"].high, 32, max(1, MOST_NUMBERS // row)) if "batch" in signature.dims else 1
    waiting = collections.deque[Any]()  # live outputs for the second pass over a batch
    seen = 0

    def answer(shown: Mapping[str, Any]) -> Any:
        nonlocal seen
        inputs = {name: np.asarray(shown[name]) for name in signature.inputs}
        found, expected = run("forward", inputs)[OUTPUT], live.forward(shown)
        label = f"evaluation {seen + 1} to {seen + len(found)}"
        compared(Case(label, "forward", inputs, {}), difference(found, expected))
        waiting.append(expected)
        seen += len(found)
        return found

    return live.scores((answer, lambda shown: waiting.popleft()), size, most)


def metric_problems(metrics: Mapping[str, tuple[float, float]], bound: float, turned: float) -> list[str]:
    """What is wrong with metrics (of the artifact, live), a line for each.

    A metric may differ by the bound, relative to itself where it is larger than one, or by the share of items whose likeliest class is
    another one: accuracy turns over at near ties, and row_of has seen that they are.
    """
    return [
        f"{name} is {found:.6f}, and {live:.6f} of the live model"
        for name, (found, live) in metrics.items()
        if not _near(found, live, max(bound * max(1.0, abs(live)), turned * (1 + 1e-6)))
    ]


def _near(found: float, live: float, most: float) -> bool:
    """Whether they differ by `most`; infinity is near itself alone, and NaN is near NaN."""
    if math.isfinite(found) and math.isfinite(live):
        return abs(found - live) <= most
    return found == live or (math.isnan(found) and math.isnan(live))
