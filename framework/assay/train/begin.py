"""The state that a session begins with: drawn from the seed, with the model's own initial values, or restored from a checkpoint."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from assay.checkpoint.checkpoints import Checkpoints, dotted
from assay.checkpoint.digests import digests
from assay.errors import CheckpointError, PluginError
from assay.kinds import InitialValues
from assay.network import Tree
from assay.plan.plan import Plan, with_shardings
from assay.train.state import TrainState, initial_state, initial_variables


def drawn(plan: Plan) -> TrainState:
    """The state before the first step: a pure function of the seed and of the model's `initial_values`, where it has any."""
    e, network, optimizer, shardings = plan.experiment, plan.network, plan.optimizer, plan.shardings
    values = _initial_values(plan)
    if not values:
        return jax.jit(lambda: initial_state(e, network, optimizer), out_shardings=shardings)()
    variables = _variables(plan, values, (plan.abstract.params, plan.abstract.frozen, plan.abstract.stats))
    begin = functools.partial(initial_state, e, network, optimizer)
    return jax.jit(begin, out_shardings=shardings)(variables)


def restored(plan: Plan, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state of a checkpoint, whatever mesh wrote it; Frozen variables, which it lacks, are made again.

    Raises CheckpointError when those are no longer what they were.
    """
    return _restored(plan, checkpoints, step, with_shardings(plan.abstract, plan.shardings))


def evaluated(plan: Plan, checkpoints: Checkpoints, step: int) -> TrainState:
    """The part of it that evaluation uses; the rest is not read."""
    return _restored(plan, checkpoints, step, with_shardings(plan.abstract, plan.shardings).part_evaluated)


def _restored(plan: Plan, checkpoints: Checkpoints, step: int, wanted: TrainState) -> TrainState:
    state = checkpoints.restore(step, dataclasses.replace(wanted, frozen={}))
    if not plan.network.frozen:
        return state
    frozen = _variables(plan, _initial_values(plan), ({}, plan.abstract.frozen, {}))[1]
    _compare(checkpoints.extra(step)["frozen"], digests(frozen), f"checkpoint {step} in {checkpoints.directory}")
    return dataclasses.replace(state, frozen=frozen)


def _compare(before: Mapping[str, int], now: Mapping[str, int], where: str) -> None:
    """Raise CheckpointError naming the Frozen variables that changed."""
    changed = [path for path in now if before.get(path) != now[path]]
    if changed:
        raise CheckpointError(
            f"{where} was trained with other frozen parameters ({', '.join(changed[:3])}{', …' if changed[3:] else ''}); "
            "restore the files that the model takes its initial values from"
        )


def _initial_values(plan: Plan) -> dict[str, np.ndarray]:
    """Dotted path in (params, frozen) -> the model's initial value. Raises PluginError for names and shapes that there are not."""
    model = plan.experiment.model
    if not isinstance(model, InitialValues):
        return {}
    values = {path.replace("/", "."): value for path, value in model.initial_values(plan.spec).items()}
    known = dotted(plan.network.params) | dotted(plan.network.frozen)
    wrong = [f"  {path}: the model has no such parameter" for path in values if path not in known]
    wrong += [
        f"  {path}: has shape {tuple(value.shape)}, the model's is {tuple(known[path].shape)}"
        for path, value in values.items()
        if path in known and tuple(value.shape) != tuple(known[path].shape)
    ]
    if wrong:
        raise PluginError(
            f"the initial values of model {type(model).__name__} do not fit it:\n" + "\n".join(sorted(wrong))
        )
    return values


def _variables(
    plan: Plan, values: Mapping[str, np.ndarray], wanted: tuple[Tree, Tree, Tree]
) -> tuple[Tree, Tree, Tree]:
    """(params, frozen, stats), as far as `wanted`: what `values` has is put on the devices, the rest drawn; each device holds its part."""
    shardings = (plan.shardings.params, plan.shardings.frozen, plan.shardings.stats)
    places = [dotted(sharding) if tree else {} for sharding, tree in zip(shardings, wanted, strict=True)]
    missing = [{path: s for path, s in place.items() if i == 2 or path not in values} for i, place in enumerate(places)]

    def draw() -> Any:
        trees = initial_variables(plan.experiment, plan.network)
        return [{path: dotted(tree)[path] for path in paths} for tree, paths in zip(trees, missing, strict=True)]

    found = jax.jit(draw, out_shardings=missing)()
    for i, place in enumerate(places):
        found[i] |= {path: _placed(values[path], s) for path, s in place.items() if path not in missing[i]}
    built = [
        jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in dotted(tree)])
        for tree, leaves in zip(wanted, found, strict=True)
    ]
    return built[0], built[1], built[2]


def _placed(value: np.ndarray, sharding: Any) -> jax.Array:
    """`value` as a float32 array on its devices; each reads only its part."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: np.asarray(value[index], np.float32))
