"""A model that begins with parameters from a file: those of an import, or of a run."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from assay.checkpoint.checkpoints import dotted
from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.imported import PARAMETERS
from assay.kinds import Model
from assay.network import make_network
from assay.runs.directory import RECORD
from assay_plugins.models.stored import Stored, imported_in, run_in

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The model, whose parameters begin with those in `path`.

    model: the model; for an import, as the lines of its model.gin configure it.
    path: a directory that `assay import` made, or that of a run, whose newest checkpoint counts (its moving average where it has one;
        adapters of model.lora are merged).
    fresh: parts of the model, such as 'head', that are drawn instead, whether `path` has them or not.
    """

    model: Model
    path: str
    fresh: tuple[str, ...] = ()

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> nnx.Module:
        """The model's own network. Raises what the model raises for data that do not fit."""
        return self.model.build(spec, rngs)

    def initial_values(self, spec: DataSpec) -> Mapping[str, np.ndarray]:
        """The stored arrays by path.

        Raises DataError where there are none, and ConfigError listing every name and shape that differs from the model's.
        """
        network = make_network(self.model, spec)
        wanted = {**_slashed(network.params), **_slashed(network.frozen)}
        stored = self._stored()
        self._compare({name: tuple(leaf.shape) for name, leaf in wanted.items()}, stored, spec)
        return {name: stored.arrays[name] for name in wanted if not _within(name, self.fresh)}

    def _stored(self) -> Stored:
        """What is in `path`."""
        path = Path(self.path).expanduser()
        if (path / PARAMETERS).is_file():
            return imported_in(path)
        if (path / RECORD).is_file():
            return run_in(path)
        raise ConfigError(
            f"model.pretrained.path = {self.path!r}: neither an imported model ({PARAMETERS}) nor a run ({RECORD}); "
            "`assay import` makes the former"
        )

    def _compare(self, wanted: Shapes, stored: Stored, spec: DataSpec) -> None:
        """Raise ConfigError for parts that there are not, and for every misfit of names and shapes."""
        unknown = [part for part in self.fresh if not any(_within(name, (part,)) for name in wanted)]
        if unknown:
            top = sorted({name.split("/")[0] for name in wanted})
            raise ConfigError(
                f"model.pretrained.fresh: the model has no part {', '.join(map(repr, unknown))}; it has {', '.join(top)}"
            )
        shapes = {name: array.shape for name, array in stored.arrays.items() if not _within(name, self.fresh)}
        kept = {name: shape for name, shape in wanted.items() if not _within(name, self.fresh)}
        if wrong := misfits(kept, shapes):
            advice = _advice(wrong, kept, stored, spec)
            raise ConfigError(f"the parameters in {self.path} do not fit the model:\n" + "\n".join([*wrong, *advice]))


def misfits(wanted: Shapes, stored: Shapes) -> list[str]:
    """A line for each difference of names and shapes."""
    wrong = [f"  {name}: not stored" for name in sorted(wanted.keys() - stored.keys())]
    wrong += [f"  {name}: stored, and not the model's" for name in sorted(stored.keys() - wanted.keys())]
    both = sorted(name for name in wanted.keys() & stored.keys() if wanted[name] != stored[name])
    return wrong + [f"  {name}: stored with shape {stored[name]}, the model's is {wanted[name]}" for name in both]


def _advice(wrong: Sequence[str], wanted: Shapes, stored: Stored, spec: DataSpec) -> list[str]:
    """What to do about it, as far as that can be said."""
    rows = wanted.get("tokens/embedding", (0,))[0]
    if spec.vocab_size is not None and stored.vocab_size not in (None, rows):
        return [
            f"The stored model knows {stored.vocab_size} token ids, the dataset {spec.vocab_size}. Give the dataset the model's own "
            f"tokenizer; where that has fewer ids than the model, set vocab_size = {stored.vocab_size} of the model"
        ]
    if all(line.lstrip().startswith("head") for line in wrong):
        return ["For other classes than the stored model's, set model.pretrained.fresh = ('head',)"]
    return []


def _within(name: str, parts: Collection[str]) -> bool:
    """Whether a parameter is, or belongs to, one of the parts."""
    return any(name == part or name.startswith(f"{part}/") for part in parts)


def _slashed(tree: Any) -> dict[str, Any]:
    return {path.replace(".", "/"): leaf for path, leaf in dotted(tree).items()}
