"""The multilayer perceptron, on feature vectors, or on images taken as such."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay_plugins.models.checks import at_least, fraction
from assay_plugins.models.layers import Linear, dropout, dropout_key, gelu, normal
from assay_plugins.models.specs import vectors_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP:
    """Linear maps with an activation between them (Rumelhart et al. 1986). Reads `features`, or `image`.

    hidden: widths of the hidden layers, from the input on. dropout: rate after each activation, in training.
    """

    hidden: Sequence[int] = (256, 256)
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        for width in self.hidden:
            at_least(1, hidden=width)
        fraction("dropout", self.dropout)

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Perceptron":
        """The network for labelled vectors or images. Raises ConfigError for other data."""
        name, shape, classes = vectors_of(spec, "mlp")
        return Perceptron(self, name, math.prod(shape), classes, rngs)


class Perceptron(nnx.Module):
    """The network of `MLP`.

    Kernels are drawn from N(0, 2 / inputs) (He et al. 2015, arXiv:1502.01852, eq. 10), the head's from N(0, 1 / inputs).
    """

    def __init__(self, options: MLP, element: str, inputs: int, classes: int, rngs: nnx.Rngs) -> None:
        self.options, self.element = options, element
        widths = [inputs, *options.hidden]
        # By turns, as Megatron does: a layer divided by columns, the next by rows.
        axes = ["features" if i % 2 == 0 else "mlp" for i in range(len(widths))]
        last = len(widths) - 1
        self.layers = nnx.List(
            Linear(
                {axes[i]: widths[i]},
                {axes[i + 1]: widths[i + 1]},
                init=normal(math.sqrt(2 / widths[i])),
                bias=True,
                rngs=rngs,
            )
            for i in range(last)
        )
        init = normal(math.sqrt(1 / widths[last]))
        self.head = Linear({axes[last]: widths[last]}, {"classes": classes}, init=init, bias=True, rngs=rngs)

    def __call__(
        self, batch: Batch, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch classes"]:
        """batch: `features`, (batch, features), or `image`, (batch, height, width, channels). rngs: for dropout, in training."""
        x = batch[self.element].astype(self.head.kernel.dtype)
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers:
            x = (jax.nn.relu if self.options.activation == "relu" else gelu)(layer(x))
            x = dropout(x, self.options.dropout, dropout_key(self.options.dropout, train, rngs))
        return self.head(x)
