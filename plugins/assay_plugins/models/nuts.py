"""The No-U-Turn sampler: the Markov chains over a Bayesian program's posterior as a model without parameters."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from flax import nnx

from assay.data.spec import DataSpec
from assay_plugins.bayes.program import Problem, Program
from assay_plugins.bayes.sampled import Sampled, Sampler
from assay_plugins.models.checks import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class NUTS:
    """Hoffman and Gelman 2014 (arXiv:1111.4246), multinomial (Betancourt 2017, arXiv:1701.02434), by numpyro's kernel.

    With objective.mcmc a step of training is one transition of every chain: set experiment.steps to warmup + draws, and
    experiment.batch_size to the number of rows. Chains, adaptation and draws are module variables, so they are in checkpoints,
    and a resumed run goes on with the draws that it would have had. The optimizer has nothing to move.

    of: the program. chains: independent ones, moved together. warmup: transitions that adapt step size and mass matrix, not
    kept. draws: kept of each chain; later ones are not. target_acceptance: of the adaptation; nearer to 1 takes smaller steps.
    max_tree_depth: a transition takes at most 2^max_tree_depth - 1 steps. dense_mass: a full mass matrix, not its diagonal.
    init_radius: chains begin uniform in [-init_radius, init_radius], unconstrained.
    """

    of: Program
    chains: int = 4
    warmup: int = 1000
    draws: int = 1000
    target_acceptance: float = 0.8
    max_tree_depth: int = 10
    dense_mass: bool = False
    init_radius: float = 2.0

    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_initialisation_is_a_function_of_the_key": "a sampler has no parameters; its starting points are variables"
    }

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        at_least(1, chains=self.chains, warmup=self.warmup, max_tree_depth=self.max_tree_depth)
        at_least(4, draws=self.draws)
        if not 0.0 < self.target_acceptance < 1.0:
            raise ValueError(f"target_acceptance = {self.target_acceptance}: must be between 0 and 1")
        if self.init_radius < 0:
            raise ValueError(f"init_radius = {self.init_radius}: must be at least 0")

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> Sampled:
        """The chains. Raises ConfigError where the program cannot use the data, PluginError where it cannot be treated so."""
        settings = Sampler(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "of"})
        return Sampled(Problem(self.of, spec), settings, rngs)
