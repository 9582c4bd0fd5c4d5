"""The batch and the hidden layers divided over two axes of devices."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """Hidden units of feed-forward layers over `mlp` devices, the batch over all others.

    mlp: devices that share one copy of the parameters; must divide the hidden width.
    """

    mlp: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for a number of devices that cannot be."""
        if self.mlp < 1:
            raise ValueError(f"mlp = {self.mlp}: must be at least 1")

    def mesh_axes(self) -> Mapping[str, int]:
        """The mesh, outermost axis first; -1 stands for all remaining devices."""
        return {"data": -1, "mlp": self.mlp}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Logical axis -> mesh axes. What is not named here every device holds whole."""
        return {"batch": ("data",), "mlp": ("mlp",), "act_mlp": ("mlp",)}
