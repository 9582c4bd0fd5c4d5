"""Stochastic variational inference: an approximate posterior of a Bayesian program as the model that is trained."""

import dataclasses

from flax import nnx

from assay.data.spec import DataSpec
from assay_plugins.bayes.guides import Family
from assay_plugins.bayes.program import Problem, Program
from assay_plugins.bayes.variational import Variational
from assay_plugins.models.checks import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVI:
    """q(latent sites), whose parameters objective.elbo moves towards the posterior (Kucukelbir et al. 2017, arXiv:1603.00788).

    of: the program. guide: q over unconstrained values: "normal" (independent), "multivariate_normal" (full covariance; its
    parameters are not divided over devices), or "delta" (a point: the mode of the joint density).
    init_radius: locations begin uniform in [-init_radius, init_radius]. init_scale: first standard deviations.
    draws: from q, in predictions, in evaluation and in posterior summaries.
    """

    of: Program
    guide: Family = "normal"
    init_radius: float = 1.0
    init_scale: float = 0.1
    draws: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        at_least(1, draws=self.draws)
        if self.init_radius < 0 or self.init_scale <= 0:
            raise ValueError(
                f"init_radius = {self.init_radius}, init_scale = {self.init_scale}: must be at least 0, and positive"
            )

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> Variational:
        """The guide. Raises ConfigError where the program cannot use the data, PluginError where it cannot be treated so."""
        return Variational(
            Problem(self.of, spec),
            self.guide,
            init_radius=self.init_radius,
            init_scale=self.init_scale,
            draws=self.draws,
            rngs=rngs,
        )
