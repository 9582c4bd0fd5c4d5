"""Transforms applied one after the other, and what each costs: bytes, outputs, and the task's own metrics."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from assay.exported import Exported
from assay.kinds import Transform
from assay_export.cases import Case
from assay_export.compare import Difference, difference
from assay_export.live import Call, Live
from assay_export.programs import OUTPUT

BATCH = 32
Kept = tuple[Case, np.ndarray]
MEBIBYTE = 1 << 20


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

    outputs: of forward on real examples, against the live model. metrics: name -> (of the live model, now), over `examples` of the
    evaluation split; empty where the objective calls the network in another way.
    """

    transform: str
    bytes: tuple[int, int]
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
        metrics = [f"{name} {live:.6f} -> {now:.6f}" for name, (live, now) in self.metrics.items()]
        return [first, *(f"{self.transform}: {line} over {self.examples} examples" for line in metrics)]


def transformed(
    source: Exported, live: Live, transforms: Sequence[tuple[str, Transform]], examples: int
) -> tuple[Exported, Live, list[Effect]]:
    """(what is exported after all transforms, the live model to compare it with, the effect after each transform).

    transforms: (the text that names it, the plugin), in order. examples: most for the task's metrics. Raises ExportError, as transforms do.
    """
    if not transforms:
        return source, live, []
    size, plain = _bytes(source), live.metrics(live.forward, _rows(source), examples)
    expected = np.asarray(live.forward(dict(source.examples)))
    effects: list[Effect] = []
    changed = live
    for name, transform in transforms:
        source = transform.apply(source)
        changed = TransformedLive(live.plan, live.variables, source=source)
        found = changed.metrics(changed.forward, _rows(source), examples) if plain else None
        metrics = {k: (value, found[0][k]) for k, value in plain[0].items()} if plain and found else {}
        outputs = difference(changed.forward(dict(source.examples)), expected)
        effects.append(Effect(name, (size, _bytes(source)), outputs, metrics, plain[1] if plain else 0))
    return source, changed, effects


def of_artifact(
    source: Exported, kept: Sequence[Kept], transforms: Sequence[tuple[str, Transform]]
) -> tuple[Exported, Sequence[Kept], list[Effect]]:
    """The same for what an artifact holds, without its run: (what is exported, the examples with the outputs to expect now, the effects).

    kept: the artifact's examples, real ones first. There are no metrics: they need the run's data.
    """
    size, found, effects = _bytes(source), kept, list[Effect]()
    for name, transform in transforms:
        source = transform.apply(source)
        forward = _forward(source)
        found = [(case, case.of_live(forward(case.inputs))) for case, _ in kept]
        off = difference(found[0][1], kept[0][1])
        effects.append(Effect(name, (size, _bytes(source)), off, {}, 0))
    return source, found, effects


def _forward(source: Exported) -> Call:
    """forward of numpy's arrays, compiled."""
    program = source.program("forward")
    weights, call = jax.device_put(dict(source.weights)), jax.jit(program.function)
    return lambda inputs: call(weights, {name: inputs[name] for name in program.signature.inputs})[OUTPUT]


def _rows(source: Exported) -> int:
    """Examples that forward takes at once."""
    dynamic = "batch" in source.program("forward").signature.dims
    return min(source.dims["batch"].high, BATCH) if dynamic else 1


def _bytes(source: Exported) -> int:
    return sum(int(weight.nbytes) for weight in source.weights.values())
