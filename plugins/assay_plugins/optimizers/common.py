"""What all optimizers share: the learning rate, clipping by the global norm, and which parameters count as matrices."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from assay.kinds import Schedule

DecayMask = Literal["matrices", "all"]
"""Which parameters decay: those that multiply (see `is_matrix`), or all of them."""

_FUSED = ({"heads", "head_dim"}, {"kv_heads", "head_dim"})


def schedule_of(learning_rate: Schedule | float, total_steps: int) -> optax.Schedule:
    """step -> learning rate, of a schedule plugin or a constant."""
    if isinstance(learning_rate, Schedule):
        return learning_rate.build(total_steps)
    return optax.constant_schedule(learning_rate)


def assembled(
    clip_norm: float | None, *direction: optax.GradientTransformation, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Clip, then `direction`, then times minus the learning rate."""
    clip = [] if clip_norm is None else [clip_by_global_norm(clip_norm)]
    return optax.chain(*clip, *direction, optax.scale_by_learning_rate(learning_rate))


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """All gradients times min(1, limit / norm), norm over all of them (Pascanu et al. 2013, arXiv:1211.5063).

    One factor for all leaves, so that it fuses into what follows; the norm is the expression that the training step logs.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        factor = limit / jnp.maximum(optax.tree.norm(updates), limit)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decayed(weight_decay: float, mask: DecayMask, axes: PyTree) -> optax.GradientTransformation:
    """Adds weight_decay * parameter to the update of the masked parameters."""
    if weight_decay == 0.0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, None if mask == "all" else map_axes(is_matrix, axes))


def is_matrix(axes: tuple[str | None, ...]) -> bool:
    """Whether a parameter with these axes has at least two dimensions: stacked layers are none, heads x head width are one.

    So embeddings, kernels and convolutions are matrices; biases and the scales of norms are not, stacked over layers or not.
    """
    return len(dimensions(axes)) >= 2


def dimensions(axes: tuple[str | None, ...]) -> tuple[tuple[int, ...], ...]:
    """The indices of `axes` by dimension of the linear map: without "layers", with a head axis and its width together."""
    groups: list[tuple[int, ...]] = []
    for i, axis in enumerate(axes):
        if axis == "layers":
            continue
        if groups and {axes[groups[-1][-1]], axis} in _FUSED:
            groups[-1] += (i,)
        else:
            groups.append((i,))
    return tuple(groups)


def map_axes(function: Any, axes: PyTree) -> Any:
    """A tree like the parameters, of `function` of each one's axes."""
    return jax.tree.map(function, axes, is_leaf=lambda node: isinstance(node, tuple))


def checked(learning_rate: Schedule | float, clip_norm: float | None, weight_decay: float, **fractions: float) -> None:
    """Raise ValueError for settings out of range; `fractions` must be at least 0 and less than 1."""
    if not isinstance(learning_rate, Schedule) and not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate = {learning_rate}: must be a positive number, or a schedule")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm = {clip_norm}: must be positive, or None for no clipping")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay = {weight_decay}: must be at least 0")
    for name, value in fractions.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} = {value}: must be at least 0 and less than 1")
