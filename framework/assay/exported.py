"""What is exported of a run: pure programs with named inputs and outputs, the weights that they read, and where they come from."""

import dataclasses
import importlib.metadata
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from packaging.requirements import Requirement

from assay.data.spec import DataSpec
from assay.errors import ExportError

if TYPE_CHECKING:  # describing programs must not import jax
    from jaxtyping import Array

OUTPUT, TOKENS = "output", "inputs"
"""The output of forward, and the input with token ids, as in every dataset of text."""

BOUNDS: Mapping[str, float] = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Floating point dtype that is computed in -> how far outputs may be from the live model's, relative to the largest of them: some 340 unit
roundoffs of float32, of which most models use a few, and ten of the short ones."""

FLOATS = tuple(BOUNDS)


def bound_of(*dtypes: str) -> float:
    """The bound where these dtypes are computed in: the coarsest one's."""
    return max(BOUNDS[name] for name in dtypes)


def as_stored(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights."""
    return weights


@dataclasses.dataclass(frozen=True)
class Dim:
    """A dimension that is not fixed: any size from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def corners(self) -> tuple[int, ...]:
        """Sizes that are tried: the least, an odd one within, the largest."""
        odd = (self.low + self.high) // 2 | 1
        return tuple(sorted({self.low, min(odd, self.high), self.high}))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a program.

    shape: sizes, or names of dims. dtype: numpy's name, or "bfloat16". below: integers lie in [0, below), a number or the name of a dim.
    """

    shape: tuple[int | str, ...]
    dtype: str
    below: int | str | None = None

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the dims have these sizes."""
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a program, by name.

    donated: inputs whose memory the output of the same name may take over, such as a cache; before the first call they are zeros.
    at_most: pairs of dims, the first of which is never larger than the second.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    donated: tuple[str, ...] = ()
    at_most: tuple[tuple[str, str], ...] = ()

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of its dims, in the order of the inputs."""
        return tuple(dict.fromkeys(n for t in self.inputs.values() for n in t.shape if isinstance(n, str)))

    def sizes(self, dims: Mapping[str, Dim]) -> Iterator[dict[str, int]]:
        """A few combinations of corners, those that `at_most` allows.

        All least, all odd, all largest; then what it takes for every corner of every dim, and every pair of two dims' extremes.
        """
        corners = {name: dims[name].corners for name in self.dims}
        possible = [
            sizes
            for sizes in (dict(zip(corners, chosen, strict=True)) for chosen in itertools.product(*corners.values()))
            if all(sizes[small] <= sizes[large] for small, large in self.at_most)
        ]

        def tried(sizes: Mapping[str, int]) -> set[Any]:
            extremes = [(name, n) for name, n in sizes.items() if n in (dims[name].low, dims[name].high)]
            return {*sizes.items(), *itertools.combinations(extremes, 2)}

        missing = set[Any]().union(*map(tried, possible))
        together = [{name: of[min(i, len(of) - 1)] for name, of in corners.items()} for i in range(3)]
        for sizes in (s for i, s in enumerate(together) if s in possible and s not in together[:i]):
            missing -= tried(sizes)
            yield sizes
        while missing:
            sizes = max(possible, key=lambda sizes: len(missing & tried(sizes)))
            missing -= tried(sizes)
            yield sizes


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function of weights and inputs, both by name, to outputs by name; jax traces it, with symbolic shapes too.

    function(weights, inputs): weights may hold more than it reads, and have the paths and dtypes of `Exported.weights`.
    """

    name: str
    function: "Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]"
    signature: Signature


@dataclasses.dataclass(frozen=True)
class Exported:
    """Everything that an exporter may need of a run's checkpoint.

    model, spec: the plugin and what its data are; None and empty for an artifact that is written again without its run.
    programs: "forward" first; models that decode token by token also have "prefill" and "decode".
    dims: of all programs, by name. weights: path ("blocks/0/attention/query/kernel") -> array as evaluation uses it, perhaps read lazily.
    examples: real rows of forward's inputs from the evaluation split. lineage: JSON-able facts on where it comes from.
    notes: what somebody who uses it should know, such as a dimension that is fixed, and why.
    dtype: floating point dtype that programs compute in, whatever weights are stored in.
    restore: of the last transform that stores weights in another form: weights -> those that it was given, by path; jax can trace it.
    """

    model: Any
    spec: DataSpec
    programs: Sequence[Program]
    dims: Mapping[str, Dim]
    weights: Mapping[str, np.ndarray]
    examples: Mapping[str, np.ndarray]
    lineage: Mapping[str, Any]
    notes: Sequence[str] = ()
    dtype: str = "float32"
    restore: Callable[[Mapping[str, Any]], Mapping[str, Any]] = as_stored

    def program(self, name: str) -> Program:
        """The program of that name. Raises ExportError naming those there are."""
        found = next((p for p in self.programs if p.name == name), None)
        if found is None:
            raise ExportError(f"there is no program '{name}'; there are {', '.join(p.name for p in self.programs)}")
        return found


def absent(requirements: Sequence[str]) -> list[str]:
    """Those that are not installed here, in the versions that they ask for."""
    return [name for name in requirements if not _installed(Requirement(name))]


def _installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


class Runner(Protocol):
    """A program of an artifact, ready to be called."""

    def __call__(self, program: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for named inputs. Raises ExportError for inputs that do not fit the signature."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What an exporter has written into its directory.

    programs: names of those that the format holds. facts: JSON-able, for the manifest and the loader, such as files, opset, expiry.
    requirements: what its loader needs, as pip names it. tolerance: bound of the parity gate, None for the dtype's that is computed in.
    notes: what somebody who uses the format should know, such as a dimension that is fixed, and why.
    """

    programs: Sequence[str]
    facts: Mapping[str, Any]
    requirements: Sequence[str]
    tolerance: float | None = None
    notes: Sequence[str] = ()
