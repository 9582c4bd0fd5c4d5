"""A network with one hidden layer, for labelled images."""

import dataclasses
import math

import jax
from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Batch
from assay.parallel.constrain import constrain
from flax import nnx


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """relu(x A) B on flattened images. width: hidden units."""

    width: int = 32

    def __post_init__(self) -> None:
        """Raise ValueError for a width that cannot be; `assay check` reports it with the file's line."""
        if self.width < 1:
            raise ValueError(f"width = {self.width}: must be at least 1")

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Net":
        """The network for the data that `spec` describes. Raises ConfigError for data without images and labels."""
        if spec.num_classes is None or "image" not in spec.elements:
            raise ConfigError("model.my_plugin needs a dataset with images and labels, such as @dataset.digits()")
        return Net(math.prod(spec.elements["image"].shape), self.width, spec.num_classes, rngs)

    def parameter_count(self, spec: DataSpec) -> int:
        """The number of parameters by a formula, which a check compares with the network's."""
        return self.width * (math.prod(spec.elements["image"].shape) + (spec.num_classes or 0))


class Net(nnx.Module):
    """The network of `MyPlugin`. `axes` names each dimension, so that any parallelism plugin can place the parameters."""

    def __init__(self, inputs: int, width: int, classes: int, rngs: nnx.Rngs) -> None:
        draw = nnx.initializers.he_normal()
        self.up = nnx.Param(draw(rngs.params(), (inputs, width)), axes=("features", "mlp"))
        self.head = nnx.Param(draw(rngs.params(), (width, classes)), axes=("mlp", "classes"))

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """batch: `image`, (batch, height, width, channels). Returns logits, (batch, classes)."""
        up, head = self.up[...], self.head[...]
        x = batch["image"].reshape(-1, up.shape[0]).astype(up.dtype)
        x = constrain(jax.nn.relu(x @ up), "batch", "act_mlp")
        return x @ head
