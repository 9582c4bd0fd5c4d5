"""Several datasets as one, in given proportions."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from assay.data import cache, order
from assay.data.blocks import read
from assay.data.spec import DataSpec
from assay.errors import DataError
from assay.kinds import Dataset, Source

LONGEST_PERIOD = 10_000
TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Training examples of `datasets` in proportion to `weights`; other splits are the components' splits joined.

    datasets: with equal examples (and, for text, equal vocabularies). weights: positive; only their ratios matter. They are taken in
    units of the smallest fraction 1/p, p <= 10,000, that gives them exactly, else of 1/10,000.

    An epoch is as long as it takes for every example of every dataset to appear; the smaller ones, for their weight, are repeated, in
    another order each time. Within an epoch the first n examples hold n * weight of each dataset to within one (before the shuffle).
    """

    datasets: Sequence[Dataset]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        """Raise ValueError when datasets and weights do not fit."""
        if not self.datasets or len(self.datasets) != len(self.weights):
            raise ValueError(
                f"{len(self.datasets)} datasets and {len(self.weights)} weights: give one weight for each dataset"
            )
        if min(self.weights) <= 0 or min(shares(self.weights)) == 0:
            raise ValueError(
                f"weights = {tuple(self.weights)}: must be positive, and at least 1/{LONGEST_PERIOD} of their sum"
            )

    def spec(self) -> DataSpec:
        """That of the first dataset. Raises DataError when another's differs."""
        first, *others = (dataset.spec() for dataset in self.datasets)
        for place, other in enumerate(others, start=2):
            differing = [name for name, value in _facts(first).items() if _facts(other)[name] != value]
            if differing:
                raise DataError(
                    f"dataset {place} of the mixture differs from the first in {', '.join(differing)}: "
                    + "; ".join(f"{name} {_facts(other)[name]} for {_facts(first)[name]}" for name in differing)
                    + ". Give all the same shape, and for text one tokenizer that needs no training (bytes, or hf)"
                )
        return first

    def source(self, split: str) -> Source:
        """The mixed training examples, or the joined examples of another split that all datasets have."""
        self.spec()
        sources = tuple(dataset.source(split) for dataset in self.datasets)
        return Mixed(sources, shares(self.weights)) if split == "train" else Joined(sources)

    def fingerprint(self) -> str:
        """Digest of the datasets' fingerprints and the proportions."""
        return cache.digest("mixture", *(d.fingerprint() for d in self.datasets), *shares(self.weights))


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A Source in which component k is read at shares[k] of every sum(shares) consecutive indices."""

    sources: tuple[Source, ...]
    shares: tuple[int, ...]

    def __len__(self) -> int:
        periods = max(-(-len(source) // share) for source, share in zip(self.sources, self.shares, strict=True))
        return periods * sum(self.shares)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: values[0] for name, values in self.gather(np.asarray([index])).items()}

    def gather(self, indices: Int64[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, one call for each component."""
        pattern, rank = self._pattern
        periods, places = np.divmod(indices, len(pattern))
        components = pattern[places]
        occurrences = periods * np.asarray(self.shares)[components] + rank[places]
        seeds = range(len(self.sources))
        return _gathered(
            self.sources,
            components,
            [order.shuffled(occurrences[components == k], len(self.sources[k]), seed=k) for k in seeds],
        )

    @functools.cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Of one period: the component at each place, and how many of the same came before."""
        pattern = interleaved(self.shares)
        rank = np.zeros_like(pattern)
        for k, share in enumerate(self.shares):
            rank[pattern == k] = np.arange(share)
        return pattern, rank


@dataclasses.dataclass(frozen=True)
class Joined:
    """A Source of the sources one after another."""

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: values[0] for name, values in self.gather(np.asarray([index])).items()}

    def gather(self, indices: Int64[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, one call for each component."""
        ends = np.cumsum([len(source) for source in self.sources])
        components = np.searchsorted(ends, indices, side="right")
        starts = ends - np.asarray([len(source) for source in self.sources])
        of_each = [indices[components == k] - starts[k] for k in range(len(self.sources))]
        return _gathered(self.sources, components, of_each)


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratios of `weights`, their sum as small as is exact and at most LONGEST_PERIOD.

    >>> shares([0.7, 0.3])
    (7, 3)
    """
    wanted: Float64[np.ndarray, " n"] = np.asarray(weights, np.float64) / sum(weights)
    periods = np.arange(1, LONGEST_PERIOD + 1)[:, None]
    parts = periods * wanted[None, :]
    exact = np.flatnonzero((np.abs(parts - np.rint(parts)) <= TOLERANCE * periods).all(axis=1))
    if exact.size:
        return tuple(np.rint(parts[exact[0]]).astype(int).tolist())
    found = np.floor(parts[-1]).astype(int)
    found[np.argsort(found - parts[-1], kind="stable")[: LONGEST_PERIOD - found.sum()]] += 1
    return tuple(found.tolist())


def interleaved(shares: Sequence[int]) -> Int64[np.ndarray, " period"]:
    """The component at each of sum(shares) places, such that every prefix has each to within one of its proportion.

    The next place goes to the component whose place falls due first, among those that are behind by 1 / (2n - 2) or more
    (Tijdeman, "The chairman assignment problem", Discrete Mathematics 32(3), 1980). In whole numbers throughout.
    """
    count, period = len(shares), sum(shares)
    if count == 1:
        return np.zeros(period, np.int64)
    scale = 2 * count - 2
    share, given = np.asarray(shares, np.int64), np.zeros(count, np.int64)
    pattern = np.empty(period, np.int64)
    for place in range(1, period + 1):
        behind = scale * (place * share - period * given)
        due = np.where(behind >= period, (scale * period - period - behind) / share, np.inf)
        pattern[place - 1] = chosen = int(np.argmin(due))
        given[chosen] += 1
    return pattern


def _gathered(
    sources: Sequence[Source], components: np.ndarray, indices: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Row r from sources[components[r]]; indices[k]: what is read from source k, in the rows' order."""
    found: dict[str, np.ndarray] = {}
    for k, source in enumerate(sources):
        if not len(indices[k]):
            continue
        for name, values in read(source, indices[k]).items():
            into = found.setdefault(name, np.empty((len(components), *values.shape[1:]), values.dtype))
            into[components == k] = values
    return found


def _facts(spec: DataSpec) -> dict[str, object]:
    """What must be equal in all components."""
    encoder = None if spec.encoder is None else spec.encoder.fingerprint
    elements = {name: (array.shape, array.dtype) for name, array in spec.elements.items()}
    return {"elements": elements, "vocab_size": spec.vocab_size, "num_classes": spec.num_classes, "encoder": encoder}
