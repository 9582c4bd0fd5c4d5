"""Rematerialisation: which activations of a block the backward pass keeps, and which it computes again."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

Remat = Literal["none", "full", "dots"]
"""none: keep all. full: keep the blocks' inputs only. dots: keep the results of matrix products with parameters too."""

_POLICIES: Mapping[Remat, Callable[..., bool]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rematerialised(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`function`, the same values, with less kept for its gradient (Chen et al. 2016, arXiv:1604.06174)."""
    return function if remat == "none" else jax.checkpoint(function, policy=_POLICIES[remat])
