"""Which layer of an artifact is the first that differs: the model is exported again with every layer's output, and those are compared.

The artifact's own weights are used: a wrong weight shows in the layer that has it, a wrong translation in the one that it is of.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from assay.errors import ExportError
from assay.exported import OUTPUT, Exported, Program, Signature, Tensor
from assay.kinds import Exporter
from assay.network import make_network
from assay_export import artifact, manifest, weights
from assay_export.cases import cases
from assay_export.compare import difference
from assay_export.live import Live
from assay_export.programs import module_of, reason_of, with_unread
from assay_export.runners import Process
from assay_kernels import force, ops


def first_difference(directory: Path, name: str, exporter: Exporter, source: Exported, live: Live) -> str:
    """A sentence that names the first layer whose output differs by more than the bound, in forward on the real examples."""
    try:
        return f"{name}: {_first(directory, name, exporter, source, live)}"
    except Exception as error:  # of whatever the model's code is: what was compared before must not be lost for it
        problem = str(error) if isinstance(error, ExportError) else reason_of(error)
        return f"{name}: its layers cannot be exported one by one: {problem}"


def _first(directory: Path, name: str, exporter: Exporter, source: Exported, live: Live) -> str:
    forward = source.program("forward")
    program = Program("forward", _Layers(live, forward.signature), forward.signature)
    rows = next(cases(source)).inputs
    here = {path: np.asarray(w) for path, w in source.weights.items()}
    expected = jax.jit(program.function)(here, rows)
    traced = dataclasses.replace(program, signature=_with_outputs(forward.signature, expected))
    theirs = weights.Weights(directory / "weights")
    again = dataclasses.replace(source, programs=[traced], weights=theirs)
    with tempfile.TemporaryDirectory(prefix="assay-bisect-") as scratch:
        place = Path(scratch) / "artifact"
        place.mkdir()
        bound = manifest.bound_in(artifact.fill(place, again, {name: exporter}, {}), name)
        with Process(place, name, exporter) as run:
            found = run("forward", rows)
    if found.keys() < expected.keys():
        raise ExportError("it is run by a library's own layers, and gives the output alone")
    for label, value in expected.items():
        off = difference(found[label], value)
        if not off.within(bound):
            return f"the first layer that differs is {_shown(label)}, by {off.max_abs:.1e} of its largest output"
    return "no layer of forward differs when they are exported one by one; it is prefill or decode that does"


class _Layers:
    """The forward program with each layer's output, in the order of the calls: "007 blocks/1/attention"."""

    def __init__(self, live: Live, signature: Signature) -> None:
        model = _without_remat(live.plan.experiment.model)
        self._network, self._dtype = make_network(model, live.plan.spec), live.plan.experiment.compute_dtype
        self._unread = {name: x for name, x in live.examples(1).items() if name not in signature.inputs}

    def __call__(self, weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        module = module_of(self._network, self._dtype, weights)
        found: dict[str, Any] = {}
        with force(**dict.fromkeys(ops(), "reference")), _captured(module, found):
            output = module(with_unread(self._unread, inputs), train=False, rngs=None)
        return {**found, OUTPUT: output}


def _without_remat(model: Any) -> Any:
    """The model, and those in it: what is computed again is out of sight."""
    if not dataclasses.is_dataclass(model) or isinstance(model, type):
        return model
    held = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.init}
    return dataclasses.replace(model, **{k: "none" if k == "remat" else _without_remat(v) for k, v in held.items()})


@contextlib.contextmanager
def _captured(module: Any, found: dict[str, Any]) -> Iterator[None]:
    """Within the context what the module's layers return is put into `found`; those that return no array are passed over."""
    nodes = [(path, node) for path, node in nnx.iter_graph(module) if isinstance(node, nnx.Module) and path]
    names = {id(node): "/".join(map(str, path)) for path, node in nodes}
    before = {cls: cls.__dict__["__call__"] for cls in {type(node) for _, node in nodes} if "__call__" in cls.__dict__}
    try:
        for cls, call in before.items():
            type.__setattr__(cls, "__call__", _noting(call, names, found))
        yield
    finally:
        for cls, call in before.items():
            type.__setattr__(cls, "__call__", call)


def _noting(call: Any, names: Mapping[int, str], found: dict[str, Any]) -> Any:
    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        output = call(self, *arguments, **options)
        if isinstance(output, jax.Array):
            found[f"{len(found):04} {names.get(id(self), type(self).__name__)}"] = output
        return output

    return noted


def _with_outputs(signature: Signature, outputs: Mapping[str, Any]) -> Signature:
    found = {name: Tensor(tuple(x.shape), x.dtype.name) for name, x in outputs.items()}
    return dataclasses.replace(signature, outputs={OUTPUT: found.pop(OUTPUT), **found})


def _shown(label: str) -> str:
    return "the head, after all layers" if label == OUTPUT else label.partition(" ")[2]
