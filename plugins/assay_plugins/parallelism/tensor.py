"""Tensor parallelism: each layer's matrices divided by columns, then by rows, over a few close devices."""

import dataclasses
from collections.abc import Mapping

from assay_plugins.parallelism.common import checked_mesh

SHARDED = ("mlp", "heads", "kv_heads", "vocab", "act_mlp", "act_heads", "act_vocab")
TENSOR_RULES: Mapping[str, tuple[str, ...]] = dict.fromkeys(SHARDED, ("tensor",))
RULES: Mapping[str, tuple[str, ...]] = {"batch": ("data",), **TENSOR_RULES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """Attention heads, feed-forward width and vocabulary divided over "tensor"; the batch over "data".

    Shoeybi et al. 2019 (Megatron-LM, arXiv:1909.08053): the first matrix of a block is divided by columns, the second by rows, so
    that a block needs one sum over devices, at its end. Networks without these axes (convolutions) stay whole.

    tensor: devices that share one copy of the model, or -1 for all remaining. data: number of such copies.
    """

    tensor: int = -1
    data: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that cannot be."""
        checked_mesh(self.mesh_axes())

    def mesh_axes(self) -> Mapping[str, int]:
        """Tensor innermost: its devices talk most."""
        return {"data": self.data, "tensor": self.tensor}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Parameters and the activations between them over "tensor"."""
        return RULES
