"""The Plan: everything that is fixed before the first array exists, made from an Experiment and checked against the devices."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from assay.data.spec import DataSpec
from assay.errors import ConfigError, LayoutError
from assay.experiment import Experiment
from assay.kinds import Dataset
from assay.network import Network, make_network
from assay.parallel.layout import Layout, Where, bytes_per_device, make_layout, nowhere
from assay.plan.flops import PEAK_FLOPS, Cost, forward_cost
from assay.train.state import TrainState, abstract_state, optimizer_of, shardings_of
from assay.train.step import Step, make_step, many
from assay_kernels import counting, problem_of

MAX_STEPS_PER_DISPATCH = 20
DISPATCH_FLOPS = {"cpu": 1e11}  # a dispatch of about a second on two cores
ACCELERATOR_DISPATCH_FLOPS = 1e13  # of about 50 ms on a data centre's GPU


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run of `experiment` on these devices will be.

    abstract, shardings: the training state's shapes and placements. batch: one global batch's shapes, mask included.
    steps_per_dispatch: updates in one call. flops_per_step: model FLOPs (forward and backward, 3 x forward), all devices.
    """

    experiment: Experiment
    spec: DataSpec
    network: Network
    layout: Layout
    optimizer: optax.GradientTransformation
    abstract: TrainState
    shardings: TrainState
    batch: Mapping[str, jax.ShapeDtypeStruct]
    steps_per_dispatch: int
    flops_per_step: int

    @property
    def device_count(self) -> int:
        """Devices in the mesh."""
        return int(self.layout.mesh.size)

    @property
    def units_per_step(self) -> int:
        """Tokens (or examples) in one update."""
        return self.experiment.batch_size * self.spec.units_per_example

    @property
    def peak_flops(self) -> float | None:
        """Peak FLOP/s of one device, where it is known."""
        return self.experiment.peak_flops or PEAK_FLOPS.get(self.layout.mesh.devices.flat[0].device_kind)

    def bytes_per_device(self) -> dict[str, int]:
        """Bytes that each device holds of the parameters, the frozen ones, the optimizer's state, and all of the training state."""
        parts: dict[str, tuple[Any, Any]] = {
            "parameters": (self.abstract.params, self.shardings.params),
            "frozen": (self.abstract.frozen, self.shardings.frozen),
            "optimizer": (self.abstract.optimizer, self.shardings.optimizer),
            "state": (self.abstract, self.shardings),
        }
        return {name: bytes_per_device(*part) for name, part in parts.items()}

    def module(self, state: TrainState) -> nnx.Module:
        """The live module with the parameters that evaluation uses."""
        params, frozen, stats = state.variables
        return self.network.merge(params, stats, self.experiment.compute_dtype, frozen)

    def step(self) -> Step:
        """The pure update function."""
        return make_step(self.experiment, self.network, self.optimizer, self.layout)

    def compiled(self) -> Any:
        """The dispatch of `steps_per_dispatch` updates, compiled from shapes alone."""
        stacked = {
            k: jax.ShapeDtypeStruct(
                (self.steps_per_dispatch, *v.shape), v.dtype, sharding=self.layout.batch(v.ndim, stacked=True)
            )
            for k, v in self.batch.items()
        }
        return (
            jitted(self, self.steps_per_dispatch)
            .lower(with_shardings(self.abstract, self.shardings), stacked)
            .compile()
        )


def make_plan(experiment: Experiment, where: Where = nowhere, devices: Sequence[jax.Device] | None = None) -> Plan:
    """The plan of `experiment` on `devices` (default: all). Allocates no device memory; may tokenise the dataset, once.

    where: configuration key -> file:line, for messages. Raises LayoutError, PluginError, DataError.
    """
    layout = make_layout(experiment.parallelism, devices, where)
    _check_batch(experiment, layout, where)
    _check_kernels(experiment, where)
    spec = spec_of(experiment.dataset)
    network = make_network(experiment.model, spec)
    optimizer = optimizer_of(experiment, network)
    abstract = abstract_state(experiment, network, optimizer)
    batch = batch_shapes(spec, experiment.batch_size)
    cost = forward_cost(_forward(experiment, network), network.params, network.frozen, network.stats, batch)
    return Plan(
        experiment=experiment,
        spec=spec,
        network=network,
        layout=layout,
        optimizer=optimizer,
        abstract=abstract,
        shardings=shardings_of(layout, network, abstract),
        batch=batch,
        steps_per_dispatch=_steps_per_dispatch(experiment, cost, layout),
        flops_per_step=3 * cost.flops,
    )


def spec_of(dataset: Dataset) -> DataSpec:
    """The dataset's description, with the rows of its training split."""
    return dataclasses.replace(dataset.spec(), examples=len(dataset.source("train")))


def batch_shapes(spec: DataSpec, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one global batch, with the `mask` that the core adds."""
    shapes = {k: jax.ShapeDtypeStruct((batch_size, *v.shape), jnp.dtype(v.dtype)) for k, v in spec.elements.items()}
    return shapes | {"mask": jax.ShapeDtypeStruct((batch_size,), jnp.dtype(bool))}


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """The tree of ShapeDtypeStructs that carry their shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def jitted(plan: Plan, steps: int) -> Any:
    """(state, batches stacked over `steps`) -> (state, metrics stacked over `steps`), with the state donated."""
    return jax.jit(many(plan.step()), donate_argnums=0, out_shardings=(plan.shardings, plan.layout.replicated))


def _check_batch(experiment: Experiment, layout: Layout, where: Where) -> None:
    """Raise LayoutError when a micro-batch does not divide over the mesh."""
    micro, parts = experiment.batch_size // experiment.accumulation, layout.batch_shards
    if micro % parts:
        raise LayoutError(
            f"experiment.batch_size = {experiment.batch_size} ({where('experiment.batch_size')}): "
            f"{'a micro-batch' if experiment.accumulation > 1 else 'a batch'} of {micro} examples cannot be divided over "
            f"{parts} devices ({layout.source}); choose a multiple of {parts * experiment.accumulation}"
        )


def _check_kernels(experiment: Experiment, where: Where) -> None:
    """Raise ConfigError for a kernel that implements no op or has a name that is taken."""
    kernels = experiment.kernels
    problems = filter(None, (problem_of(kernel, kernels[:i]) for i, kernel in enumerate(kernels)))
    if problem := next(problems, ""):
        raise ConfigError(f"experiment.kernels ({where('experiment.kernels')}): {problem}")


def _forward(experiment: Experiment, network: Network) -> Any:
    """The loss of one batch without derivatives, for counting."""

    def forward(params: Any, frozen: Any, stats: Any, batch: Any) -> Any:
        module = network.merge(params, stats, experiment.compute_dtype, frozen)
        with counting():
            return experiment.objective(module, batch, train=False, rngs=None).total()

    return forward


def _steps_per_dispatch(experiment: Experiment, forward: Cost, layout: Layout) -> int:
    """As asked, or by the cost of a step: many small steps to a call; a divisor of the intervals where one is near."""
    if isinstance(experiment.steps_per_dispatch, int):
        return min(experiment.steps_per_dispatch, experiment.steps)
    platform = layout.mesh.devices.flat[0].platform
    if platform == "cpu" and forward.convolves:
        return 1  # XLA's CPU code for a convolution is slower inside a loop
    flops_per_device = 3 * forward.flops / layout.mesh.size
    budget = DISPATCH_FLOPS.get(platform, ACCELERATOR_DISPATCH_FLOPS)
    most = max(1, min(MAX_STEPS_PER_DISPATCH, int(budget // max(flops_per_device, 1)), experiment.steps))
    common = math.gcd(experiment.steps, experiment.evaluate_every, experiment.checkpoint_every, experiment.sample_every)
    divisor = max(d for d in range(1, most + 1) if common % d == 0)
    return divisor if 2 * divisor > most else most
