"""A Bayesian neural network: the multilayer perceptron with a prior on every weight."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay_plugins.bayes.optional import load_numpyro
from assay_plugins.bayes.program import Program
from assay_plugins.models.checks import at_least
from assay_plugins.models.specs import vectors_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class BayesianMLP(Program):
    """Neal 1996, Bayesian Learning for Neural Networks, chapter 2: normal priors whose variance falls with a layer's width.

    kernel_l, bias_l ~ N(0, 1), h_0 = x, h_(l+1) = relu(h_l kernel_l weight_scale / sqrt(inputs) + bias_l),
    label ~ softmax of the last layer, without relu

    Reads `features` or `image`, and `label`. hidden: widths, from the input on. weight_scale: sqrt(2) keeps the spread from layer
    to layer (He et al. 2015, arXiv:1502.01852, eq. 10).
    """

    hidden: Sequence[int] = (64,)
    weight_scale: float = 1.4142135623730951

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        for width in self.hidden:
            at_least(1, hidden=width)
        if not self.weight_scale > 0:
            raise ValueError(f"weight_scale = {self.weight_scale}: must be positive")

    def program(self, batch: Batch, spec: DataSpec) -> None:
        """Sites kernel_0, bias_0, ... . Raises ConfigError for other data."""
        numpyro, dist = load_numpyro()
        name, widths = self._widths(spec)
        x = batch[name].reshape(len(batch[name]), -1)
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            x = jax.nn.relu(x) if i else x
            kernel, bias = _normal(f"kernel_{i}", (inputs, outputs)), _normal(f"bias_{i}", (outputs,))
            x = x @ (kernel * (self.weight_scale / math.sqrt(inputs))) + bias[None]
        numpyro.sample("label", dist.Categorical(logits=x), obs=batch["label"])

    def axes(self, spec: DataSpec) -> Mapping[str, tuple[str | None, ...]]:
        """Layers divided by columns and by rows in turn, as model.mlp's."""
        last = len(self.hidden)
        names = ["features" if i % 2 == 0 else "mlp" for i in range(last + 1)] + ["classes"]
        kernels = {f"kernel_{i}": (names[i], names[i + 1]) for i in range(last + 1)}
        return kernels | {f"bias_{i}": (names[i + 1],) for i in range(last + 1)}

    def _widths(self, spec: DataSpec) -> tuple[str, list[int]]:
        """(the input's name, widths of all layers)."""
        name, shape, classes = vectors_of(spec, "bayesian_mlp")
        return name, [math.prod(shape), *self.hidden, classes]


def _normal(name: str, shape: tuple[int, ...]) -> Array:
    """A site of independent standard normals."""
    numpyro, dist = load_numpyro()
    found: Any = numpyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))
    return found
