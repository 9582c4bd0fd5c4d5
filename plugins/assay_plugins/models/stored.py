"""Parameters on disk, by path in their model: of an imported model, and of a run's newest checkpoint."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from assay.checkpoint.checkpoints import Checkpoints, dotted
from assay.checkpoint.digests import digests
from assay.data.spec import DataSpec
from assay.errors import DataError, RunError
from assay.experiment import Experiment
from assay.imported import ORIGIN, PARAMETERS
from assay.kinds import InitialValues
from assay.network import Network, make_network
from assay.runs.directory import RunDirectory
from assay.train.launch import recorded
from assay.train.state import initial_variables
from assay_plugins.models.lora import LoRA, merged


@dataclasses.dataclass(frozen=True)
class Stored:
    """arrays: float32, by path ("blocks/0/norm/scale"). vocab_size: token ids that the model knows, where that is recorded."""

    arrays: Mapping[str, np.ndarray]
    vocab_size: int | None = None


def imported_in(directory: Path) -> Stored:
    """The parameters that `assay import` wrote, memory-mapped. Raises DataError for files that are missing or damaged."""
    try:
        facts = json.loads((directory / ORIGIN).read_text(encoding="utf-8"))
        return Stored(_mapped(directory / PARAMETERS), facts.get("vocab_size"))
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise DataError(f"the imported model in {directory} cannot be read: {error}; import it again") from error


def run_in(directory: Path) -> Stored:
    """The parameters of a run's newest checkpoint that evaluation uses, adapters merged into what they adapt.

    Raises RunError or CheckpointError where there are none, or where they are not what the run's record says.
    """
    run = RunDirectory(directory.absolute())
    experiment = recorded(run).experiment
    spec = experiment.dataset.spec()
    network = make_network(experiment.model, spec)
    if not run.checkpoints.is_dir():
        raise RunError(f"run {run.id} has no checkpoint yet")
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    try:
        step = checkpoints.step()
        part = "params" if experiment.ema_decay is None else "ema"
        found = checkpoints.restore(step, {part: jax.tree.map(_on_one_device, network.params)})[part]
        arrays = {path: np.asarray(leaf) for path, leaf in _slashed(found).items()}
        if isinstance(experiment.model, LoRA):
            frozen = _frozen(experiment, network, spec)
            if checkpoints.extra(step)["frozen"] != digests(frozen):
                raise RunError(
                    f"run {run.id}: the parameters that it adapted are no longer what they were; restore them"
                )
            arrays = merged({**arrays, **_slashed(frozen)}, experiment.model.scale)
    finally:
        checkpoints.close()
    return Stored(arrays, spec.vocab_size)


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file of float32 without reading them."""
    with safe_open(path, framework="numpy") as file:  # checks the header and the file's size
        names = list(file.keys())
    with path.open("rb") as stream:
        start = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(start))
    data = np.memmap(path, np.uint8, mode="r", offset=8 + start)
    arrays = {}
    for name in names:
        entry = header[name]
        if entry["dtype"] != "F32":
            raise ValueError(f"{name} has dtype {entry['dtype']}")
        begin, end = entry["data_offsets"]
        arrays[name] = data[begin:end].view("<f4").reshape(entry["shape"])
    return arrays


def _frozen(experiment: Experiment, network: Network, spec: DataSpec) -> Any:
    """The run's Frozen variables, made again as when it began."""
    model = experiment.model
    given = model.initial_values(spec) if isinstance(model, InitialValues) else {}
    drawn = jax.jit(lambda: initial_variables(experiment, network)[1])()
    values = [given.get(path, leaf) for path, leaf in _slashed(drawn).items()]
    return jax.tree.unflatten(jax.tree.structure(drawn), [jax.numpy.asarray(value) for value in values])


def _on_one_device(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def _slashed(tree: Any) -> dict[str, Any]:
    return {path.replace(".", "/"): leaf for path, leaf in dotted(tree).items()}
