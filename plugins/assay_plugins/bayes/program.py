"""What a Bayesian model plugin is: a NumPyro program with the facts that inference needs of it."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flax import nnx

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Batch

if TYPE_CHECKING:
    from assay_plugins.bayes.variational import Variational


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Base of Bayesian models. `model.svi(of=...)` approximates the posterior, `model.nuts(of=...)` draws from it.

    A program used as the experiment's model itself is fitted by its posterior mode.
    """

    def program(self, batch: Batch, spec: DataSpec) -> None:
        """The NumPyro model, called under its handlers: samples continuous latent sites, then observes the batch.

        Given the latent sites the rows of a batch are independent: every observed site has one value for each row and nothing
        else, and no latent site's shape depends on the number of rows. Raises ConfigError where the data do not fit.
        """
        raise NotImplementedError

    def axes(self, spec: DataSpec) -> Mapping[str, tuple[str | None, ...]]:
        """Latent site -> the logical axis or None of each dimension of its unconstrained value; sites left out are not divided."""
        return {}

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Variational":
        """A point estimate: the mode of the joint density, reached by objective.elbo."""
        from assay_plugins.bayes.variational import Variational  # which needs this module

        return Variational(Problem(self, spec), "delta", init_radius=1.0, init_scale=1.0, draws=1, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A program and the description of the data that it is given."""

    program: Program
    spec: DataSpec = dataclasses.field(hash=False)  # its arrays are in a dict, which has no hash

    @property
    def examples(self) -> int:
        """Rows of the training split, which the likelihood of a batch stands for. Raises ConfigError where the description has none."""
        if self.spec.examples is None:
            raise ConfigError(
                "a posterior depends on the number of training rows, and DataSpec.examples is None; "
                "make the description by assay.plan.plan.spec_of(dataset)"
            )
        return self.spec.examples


def need(spec: DataSpec, model: str, example: str, *names: str) -> None:
    """Raise ConfigError unless the data have all of `names`; `example` is a dataset that does."""
    missing = [name for name in names if name not in spec.elements]
    if missing:
        raise ConfigError(
            f"model.{model} needs {', '.join(names)} of each example; this dataset has {', '.join(spec.elements) or 'nothing'}. "
            f"Choose @dataset.{example}(), or one with the same arrays"
        )
