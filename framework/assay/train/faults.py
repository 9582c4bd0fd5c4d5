"""What the training loop does about steps at fault: says so, writes a dump and stops, or goes back to leave a batch out."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from assay.checkpoint.checkpoints import dotted
from assay.data.pipeline import TrainIterator
from assay.errors import AssayError
from assay.parallel.processes import is_first
from assay.plan.plan import Plan
from assay.runs.directory import RunDirectory
from assay.runs.files import replacing
from assay.runs.metrics import finite
from assay.train import guard

if TYPE_CHECKING:
    Norms = jax.Array | np.ndarray

KINDS = {guard.NOT_FINITE: "the loss or a gradient is not finite", guard.SPIKE: "the loss has a spike"}
OPTIONS = {guard.NOT_FINITE: "on_nonfinite", guard.SPIKE: "on_spike"}
MOST_REWINDS = 10  # to the same checkpoint: then it is not the batches


class Fault(AssayError):
    """Training went wrong at `step`, in the way that `kind` says; the experiment says to stop then."""

    def __init__(self, step: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.step, self.kind = step, kind


class Rewind(Exception):
    """Go back to the last checkpoint, and leave `batch` out from there on."""

    def __init__(self, step: int, batch: int, message: str) -> None:
        super().__init__(message)
        self.step, self.batch = step, batch


class Faults:
    """Sees every step's metrics once they are on the host. report: prints a line."""

    def __init__(self, plan: Plan, run: RunDirectory, batches: TrainIterator, report: Callable[[str], None]) -> None:
        e = plan.experiment
        self._plan, self._run, self._batches, self._report = plan, run, batches, report
        self._does = {guard.NOT_FINITE: e.on_nonfinite, guard.SPIKE: e.on_spike}
        self._rewinds: Counter[int] = Counter()

    def see(self, steps: range, host: Mapping[str, np.ndarray], norms: "Norms", ahead: int) -> None:
        """Look at `steps`, of which `host` has the metrics and `norms` the norm of each parameter's gradient, a row a step.

        ahead: batches handed out since. Raises Fault, with a dump written, or Rewind, for the first step that the experiment says
        so of; reports those that were skipped.
        """
        for i in np.flatnonzero(host["fault"]).tolist():
            step, kind = steps[i], int(host["fault"][i])
            batch = self._batches.batches_back(ahead + len(steps))[i]
            loss, norm = float(host["loss"][i]), float(host["gradient_norm"][i])
            said = f"step {step}: {KINDS[kind]} (loss {loss:.6g}, gradient norm {norm:.6g}, batch {batch})"
            if self._does[kind] == "skip":
                self._report(f"{said}; the update was left out")
            elif self._does[kind] == "rewind":
                self._rewinds[step] += 1
                if sum(self._rewinds.values()) > MOST_REWINDS:
                    self._stop(step, kind, batch, said + f"; went back {MOST_REWINDS} times already", i, host, norms)
                raise Rewind(step, batch, said)
            else:
                self._stop(step, kind, batch, said, i, host, norms)

    def _stop(
        self, step: int, kind: int, batch: int, said: str, i: int, host: Mapping[str, np.ndarray], norms: "Norms"
    ) -> None:
        """Write the dump and raise Fault."""
        place = self._run.path / "faults" / f"step-{step}"
        if is_first():
            layers = dict(zip(dotted(self._plan.abstract.params), np.asarray(norms)[i].tolist(), strict=True))
            self._dump(step, batch, KINDS[kind], {k: float(v[i]) for k, v in host.items()}, layers)
        raise Fault(
            step,
            KINDS[kind],
            f"{said}. The batch, the numbers of its examples and each layer's gradient norm are in {place}; "
            f"`assay replay {self._run.id} --step {step}` does the step again; to go on past such "
            f"steps set experiment.{OPTIONS[kind]} = 'skip' or 'rewind'",
        )

    def _dump(
        self, step: int, batch: int, kind: str, metrics: Mapping[str, float], layers: Mapping[str, float]
    ) -> None:
        place = self._run.path / "faults" / f"step-{step}"
        place.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = dict(self._batches.read(batch))
        with replacing(place / "batch.npz") as file:
            np.savez(file, **arrays)
        facts = {
            "step": step,
            "fault": kind,
            "batch": batch,
            "examples": self._batches.examples(batch),
            "metrics": metrics,
            "gradient_norms": layers,
        }
        self._run.write(f"faults/step-{step}/facts.json", json.dumps(finite(facts), indent=1) + "\n")
