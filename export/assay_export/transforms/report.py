"""Transforms applied one after the other, held to what each of them promises, and what each costs: bytes, outputs, the task's metrics."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from assay.errors import ExportError
from assay.exported import OUTPUT, Exported, as_stored, bound_of
from assay.kinds import Transform
from assay_export.compare import Difference, difference
from assay_export.live import PRECISION, Call, Live
from assay_export.manifest import finite
from assay_export.stored import Kept

BATCH = 32
MEBIBYTE = 1 << 20
SLACK = 1e-6  # of a bound: it is computed in floating point


@dataclasses.dataclass(frozen=True)
class TransformedLive(Live):
    """A checkpoint whose network computes with transformed weights: what an artifact of them is compared with.

    source: the transformed programs. The objective, the data and the metrics are the checkpoint's.
    """

    source: Exported = dataclasses.field(kw_only=True)

    @functools.cached_property
    def forward(self) -> Call:
        """The transformed forward, compiled."""
        return _forward(self.source)


@dataclasses.dataclass(frozen=True)
class Effect:
    """What transforms up to one did. transform: its name and settings. bytes: of all weights, (before any transform, now).

    of_bound: how much of what it says that a weight may change by one does, at most; None for a transform that computes the same.
    outputs: of forward on real examples, against the live model. metrics: name -> (of the live model, now), over `examples` of the
    evaluation split; empty where the objective calls the network in another way.
    """

    transform: str
    bytes: tuple[int, int]
    of_bound: float | None
    outputs: Difference
    metrics: Mapping[str, tuple[float, float]]
    examples: int

    def lines(self) -> list[str]:
        """For a terminal."""
        before, after = (n / MEBIBYTE for n in self.bytes)
        agree = "" if self.outputs.argmax is None else f"  argmax agrees {100 * self.outputs.argmax:.2f}%"
        first = (
            f"{self.transform}: {before:.2f} MiB -> {after:.2f} MiB ({after / before:.2f} of it)  "
            f"outputs off by {self.outputs.norm:.1e} (norm), {self.outputs.max_abs:.1e} (largest){agree}"
        )
        if self.of_bound is not None:
            first += f"  weights by {self.of_bound:.2f} of what they may be"
        metrics = [f"{name} {live:.6f} -> {now:.6f}" for name, (live, now) in self.metrics.items()]
        return [first, *(f"{self.transform}: {line} over {self.examples} examples" for line in metrics)]

    def json(self) -> dict[str, Any]:
        """For the manifest."""
        return dict(finite(dataclasses.asdict(self)))


def transformed(
    source: Exported, live: Live, transforms: Sequence[tuple[str, Transform]], examples: int
) -> tuple[Exported, Live, list[Effect]]:
    """(what is exported after all transforms, the live model to compare it with, the effect after each transform).

    What computes the same is compared with the model as it was before; what does not, with the transformed network, once its weights have
    been held to the transform's bounds and its programs to those weights. transforms: (the text that names it, the plugin), in order.
    examples: most for the task's metrics. Raises ExportError where a transform does not do what it says, and as transforms do.
    """
    if not transforms:
        return source, live, []
    size, plain = _bytes(source), live.scores([live.forward], _rows(source), examples)
    rows = dict(source.examples)
    expected = np.asarray(live.forward(rows))
    effects: list[Effect] = []
    changed = live
    for name, transform in transforms:
        source, of_bound = _applied(name, transform, source, rows, np.asarray(changed.forward(rows)))
        now = TransformedLive(live.plan, live.variables, source=source)
        if of_bound is not None:
            changed = now
        found = now.scores([now.forward], _rows(source), examples) if plain else None
        metrics = {k: (v, found.values[0][k]) for k, v in plain.values[0].items()} if plain and found else {}
        outputs = difference(now.forward(rows), expected)
        effects.append(Effect(name, (size, _bytes(source)), of_bound, outputs, metrics, plain.examples if plain else 0))
    return source, changed, effects


def of_artifact(
    source: Exported, kept: Sequence[Kept], transforms: Sequence[tuple[str, Transform]]
) -> tuple[Exported, Sequence[Kept], list[Effect]]:
    """The same for what an artifact holds, without its run: (what is exported, the examples with the outputs to expect now, the effects).

    kept: the artifact's examples, real ones first. There are no metrics: they need the run's data.
    """
    size, found, effects = _bytes(source), kept, list[Effect]()
    place, (real, live) = next((i, pair) for i, pair in enumerate(kept) if pair[0].kind == "forward")
    for name, transform in transforms:
        source, of_bound = _applied(name, transform, source, real.inputs, found[place][1])
        forward = _forward(source)
        if of_bound is not None:
            found = [(case, case.of_live(forward(case.inputs))) for case, _ in kept]
        off = difference(forward(real.inputs), live)
        effects.append(Effect(name, (size, _bytes(source)), of_bound, off, {}, 0))
    return source, found, effects


def _applied(
    name: str, transform: Transform, source: Exported, rows: Mapping[str, np.ndarray], expected: np.ndarray
) -> tuple[Exported, float | None]:
    """(the transformed, how much of its bounds it uses). rows, expected: inputs and outputs of what it is applied to.

    Raises ExportError where it does not do what it says.
    """
    _same(f"what {name} is applied to computes something else than its model", source, source.weights, rows, expected)
    found, bounds = transform.apply(source), transform.bounds(source)
    if bounds is None:
        _same(f"{name} changes what the model computes", found, found.weights, rows, expected)
        return found, None
    restore = as_stored if found.restore is source.restore else found.restore
    weights = {path: np.asarray(weight) for path, weight in restore(found.weights).items()}
    most = _most(name, source.weights, weights, bounds)
    taken = {path: weights[path].astype(weight.dtype) for path, weight in source.weights.items()}
    computed = _forward(dataclasses.replace(source, weights=taken))(rows)
    _same(f"{name}'s programs compute something else than its weights say", found, found.weights, rows, computed)
    return found, most


def _same(problem: str, source: Exported, weights: Any, rows: Mapping[str, np.ndarray], expected: Any) -> None:
    """Raise ExportError where forward's output is not the expected one, within the bound of the dtype."""
    bound = bound_of(source.dtype)
    off = difference(_forward(dataclasses.replace(source, weights=weights))(rows), expected)
    if not off.within(bound):
        raise ExportError(
            f"{problem}: outputs are off by {off.max_abs:.1e} of the largest on real examples, and the bound is {bound:.0e}"
        )


def _most(
    name: str,
    before: Mapping[str, np.ndarray],
    now: Mapping[str, np.ndarray],
    bounds: Iterable[tuple[str, np.ndarray]],
) -> float:
    """The largest part of its bound that a weight is off by. Raises ExportError where it is more than all of it."""
    found = 0.0
    unchanged = set(before)
    for path, bound in bounds:
        unchanged.remove(path)
        found = max(found, _part(before[path], now.get(path), bound))
        if found > 1 + SLACK:
            raise ExportError(f"{name}: {path} is off by {found:.3g} times what it may be off by; nothing is written")
    changed = [path for path in sorted(unchanged) if _part(before[path], now.get(path), np.zeros(1)) > 0]
    if changed:
        raise ExportError(f"{name}: {changed[0]} is another one, and was to stay as it is; nothing is written")
    return found


def _part(before: np.ndarray, now: np.ndarray | None, bound: np.ndarray) -> float:
    if now is None or now.shape != before.shape:
        return float("inf")
    off = np.abs(now.astype(np.float64) - np.asarray(before).astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(off == 0, 0.0, off / bound)
    return float(np.max(part, initial=0.0)) if not np.isnan(part).any() else float("inf")


def _forward(source: Exported) -> Call:
    """forward of numpy's arrays, compiled."""
    program = source.program("forward")
    weights = jax.device_put(dict(source.weights))

    @jax.jit
    def call(weights: Any, inputs: Any) -> Any:
        with jax.default_matmul_precision(PRECISION):
            return program.function(weights, inputs)[OUTPUT]

    return lambda inputs: call(weights, {name: inputs[name] for name in program.signature.inputs})


def _rows(source: Exported) -> int:
    """Examples that forward takes at once."""
    dynamic = "batch" in source.program("forward").signature.dims
    return min(source.dims["batch"].high, BATCH) if dynamic else 1


def _bytes(source: Exported) -> int:
    return sum(int(weight.nbytes) for weight in source.weights.values())
