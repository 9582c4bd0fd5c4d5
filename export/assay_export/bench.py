"""How fast an artifact's programs are, over batch and sequence, format by format in turns, and beside the live model of its run."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.errors import ExportError
from assay.exported import OUTPUT, Dim, Signature
from assay_export.cases import empty

TURN = 0.05
"""Seconds that a turn of one format takes, about; it has one call at least, and CALLS at most."""
CALLS = 20
PAUSE = 0.01
"""Seconds before a turn: another runtime's threads still wait for work for a while, and would take the processor."""
LIVE = "live"
Call = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""(program, named inputs) -> named outputs; arrays that the signature calls donated are used up."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One program at one size of each of its dims. context: tokens that decode attends to, its own included."""

    program: str
    sizes: Mapping[str, int]
    context: int | None = None

    @property
    def batch(self) -> int:
        """Rows at once."""
        return self.sizes.get("batch", 1)

    @property
    def length(self) -> int | None:
        """Tokens: of the input, or for decode in the cache."""
        return self.context or self.sizes.get("seq")

    @property
    def tokens(self) -> int | None:
        """Tokens that a call computes; None where it reads no text."""
        if self.program == "decode":
            return self.batch
        return self.batch * self.sizes["seq"] if "seq" in self.sizes else None


@dataclasses.dataclass(frozen=True)
class Measured:
    """Milliseconds of one program in one format at one size. first_s: seconds of the first call, in which it is loaded and compiled.

    of_live: the live model's median over this one's, the median of the rounds; None without a live model.
    """

    setting: Setting
    format: str
    first_s: float
    samples: Sequence[float]
    of_live: float | None

    def percentile(self, which: float) -> float:
        """Milliseconds that `which` per cent of the calls stay within."""
        return float(np.percentile(self.samples, which))

    @property
    def rows_per_s(self) -> float:
        """At the median."""
        return 1e3 * self.setting.batch / self.percentile(50)

    @property
    def tokens_per_s(self) -> float | None:
        """At the median; None where no text is read."""
        return None if self.setting.tokens is None else 1e3 * self.setting.tokens / self.percentile(50)


def settings(
    signatures: Mapping[str, Signature],
    dims: Mapping[str, Dim],
    batches: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
) -> list[Setting]:
    """Every program at every batch and length; decode with the largest cache, at every length as its context.

    batches: None for 1 and 8, as far as the bounds go. lengths: None for a quarter of the bound and the bound. Raises ExportError for
    sizes out of bounds, and for ones of dims that the programs do not have.
    """
    chosen = {
        "batch": _checked("--batch", "batch", batches, dims, lambda dim: {max(dim.low, 1), min(8, dim.high)}),
        "seq": _checked("--seq", "seq", lengths, dims, lambda dim: {max(dim.low, dim.high // 4), dim.high}),
    }
    found = []
    for program, signature in signatures.items():
        cache = {"cache": dims["cache"].high} if "cache" in signature.dims else {}
        for batch in chosen["batch"] if "batch" in signature.dims else [None]:
            sizes = cache | ({} if batch is None else {"batch": batch})
            if "seq" in signature.dims:
                fitting = [n for n in chosen["seq"] if all(n <= cache.get(large, n) for _, large in signature.at_most)]
                found += [Setting(program, {**sizes, "seq": n}) for n in fitting]
            elif cache:
                found += [Setting(program, sizes, context=n) for n in chosen["seq"] if n <= cache["cache"]]
            else:
                found.append(Setting(program, sizes))
    return found


def _checked(
    option: str,
    name: str,
    given: Sequence[int] | None,
    dims: Mapping[str, Dim],
    usual: Callable[[Dim], set[int]],
) -> list[int]:
    if name not in dims:
        if given is not None:
            raise ExportError(f"{option}: the artifact's programs have a fixed {name}; leave it out")
        return []
    dim = dims[name]
    wrong = [size for size in given or () if not dim.low <= size <= dim.high]
    if wrong:
        raise ExportError(f"{option} {wrong[0]}: must be from {dim.low} to {dim.high}, the artifact's bounds")
    return sorted(set(given) if given is not None else usual(dim))


def inputs_of(setting: Setting, signature: Signature) -> dict[str, np.ndarray]:
    """Random inputs, and caches before the first token: floats from N(0, 1), integers from their range, the last place of the context."""
    rng, found = np.random.default_rng(0), dict[str, np.ndarray]()
    for name, tensor in signature.inputs.items():
        shape, floating = tensor.at(setting.sizes), tensor.dtype.startswith(("float", "bfloat"))
        below = setting.sizes.get(str(tensor.below), tensor.below)
        if name == "position" and setting.context is not None:
            found[name] = np.asarray(setting.context - 1, np.int32)
        elif floating:
            found[name] = rng.normal(size=shape).astype("float32" if tensor.dtype == "bfloat16" else tensor.dtype)
        else:
            found[name] = rng.integers(0, below if isinstance(below, int) else 2, shape).astype(tensor.dtype)
    return found | empty(signature, setting.sizes)


def measured(
    calls: Mapping[str, Call],
    setting: Setting,
    signature: Signature,
    rounds: int,
) -> list[Measured]:
    """The formats that `calls` has, and "live", in turns; a result for each."""
    turns = {name: _Turns(call, setting, signature) for name, call in calls.items()}
    for _ in range(rounds):
        for turn in turns.values():
            turn.take()
    of_live = {name: _ratio(turns[LIVE].rounds, turn.rounds) if LIVE in turns else None for name, turn in turns.items()}
    return [
        Measured(setting, name, turn.first_s, [1e3 * s for part in turn.rounds for s in part], of_live[name])
        for name, turn in turns.items()
    ]


def _ratio(live: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> float:
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in zip(live, own, strict=True))


class _Turns:
    """One format's calls: the first one, which compiles, then turns. rounds: seconds of the calls of each."""

    def __init__(self, call: Call, setting: Setting, signature: Signature) -> None:
        self._call, self._program, self._donated = call, setting.program, signature.donated
        self._inputs: dict[str, Any] = dict(inputs_of(setting, signature))
        self.first_s = self._once()
        again = min(self._once() for _ in range(2))
        self._calls = max(1, min(CALLS, round(TURN / again)))
        self.rounds: list[list[float]] = []

    def take(self) -> None:
        """A turn: one call that is not counted, then those that are."""
        time.sleep(PAUSE)
        self._once()
        self.rounds.append([self._once() for _ in range(self._calls)])

    def _once(self) -> float:
        """Seconds of one call until its output is there. What it gives in place of a donated array goes into the next one."""
        start = time.perf_counter()
        found = self._call(self._program, self._inputs)
        np.asarray(found[OUTPUT])
        seconds = time.perf_counter() - start
        self._inputs |= {name: found[name] for name in self._donated}
        return seconds
