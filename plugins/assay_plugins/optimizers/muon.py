"""Muon: momentum made orthogonal, for hidden matrices; AdamW for everything else."""

import dataclasses
import math
from typing import Any

import jax
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from assay.kinds import Schedule
from assay_plugins.optimizers.common import (
    DecayMask,
    assembled,
    checked,
    decayed,
    dimensions,
    is_matrix,
    map_axes,
    schedule_of,
)

OUTER = frozenset({"vocab", "position", "classes"})
"""Axes of embeddings and output heads, whose rows are used one at a time: these parameters are left to AdamW."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """Jordan et al. 2024 (kellerjordan.github.io/posts/muon) for matrices without an axis of OUTER; AdamW for the rest.

    For a matrix: m = momentum * m + (1 - momentum) g, with nesterov the same blend of m and g, O = its nearest semi-orthogonal
    matrix by `newton_schulz_steps` quintic steps, p -= lr * (update_rms * sqrt(max(inputs, outputs)) * O + weight_decay * p): an
    update's root mean square is then update_rms, about AdamW's, so that both share learning rate and decay (Liu et al. 2025,
    arXiv:2502.16982, eq. 4). A convolution is the matrix from its window's inputs to its outputs; stacked layers are
    matrices each for itself.

    learning_rate: a schedule or a constant, of AdamW's size. b1, b2, eps: of AdamW (see optimizer.adamw).
    weight_decay: for the parameters chosen by decay_mask. clip_norm: largest global norm of the gradient; None for any.
    """

    learning_rate: Schedule | float
    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    update_rms: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_mask: DecayMask = "matrices"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked(self.learning_rate, self.clip_norm, self.weight_decay, momentum=self.momentum, b1=self.b1, b2=self.b2)
        if self.newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps = {self.newton_schulz_steps}: must be at least 1")
        if not self.update_rms > 0:
            raise ValueError(f"update_rms = {self.update_rms}: must be positive")

    def build(self, total_steps: int, axes: PyTree) -> optax.GradientTransformation:
        """The transformation; its state is one array for each Muon parameter, two for each other, and step counts."""
        maps = map_axes(_linear_map, axes)
        orthogonal = scale_by_muon(
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            nesterov=self.nesterov,
            weight_dimension_numbers=maps,
        )
        kinds = {
            "muon": optax.chain(orthogonal, _scale_by_size(self.update_rms, maps)),
            "adamw": optax.scale_by_adam(self.b1, self.b2, self.eps),
        }
        return assembled(
            self.clip_norm,
            optax.partition(kinds, map_axes(lambda names: "muon" if _is_hidden(names) else "adamw", axes)),
            decayed(self.weight_decay, self.decay_mask, axes),
            learning_rate=self.learning_rate_at(total_steps),
        )

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        """step -> learning rate."""
        return schedule_of(self.learning_rate, total_steps)


def _is_hidden(axes: tuple[str | None, ...]) -> bool:
    """Whether Muon updates a parameter with these axes."""
    return is_matrix(axes) and not OUTER & set(axes)


def _linear_map(axes: tuple[str | None, ...]) -> MuonDimensionNumbers | optax.MaskedNode:
    """Which dimensions are the inputs and which (the last) the outputs; a gap in the tree for AdamW's parameters."""
    if not _is_hidden(axes):
        return optax.MaskedNode()
    *inputs, outputs = dimensions(axes)
    return MuonDimensionNumbers(tuple(i for group in inputs for i in group), outputs)


def _scale_by_size(rms: float, maps: Any) -> optax.GradientTransformation:
    """Orthogonal updates times rms * sqrt(max(inputs, outputs)), which gives them this root mean square."""

    def scaled(update: jax.Array, dims: MuonDimensionNumbers) -> jax.Array:
        sizes = [math.prod(update.shape[i] for i in group) for group in dims]
        return update * (rms * math.sqrt(max(sizes)))

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree.map(scaled, updates, maps), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
