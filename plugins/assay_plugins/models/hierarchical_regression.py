"""Linear regression with an intercept for each group, drawn from a common distribution."""

import dataclasses

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay_plugins.bayes.optional import load_numpyro
from assay_plugins.bayes.program import Program, need


@dataclasses.dataclass(frozen=True, kw_only=True)
class HierarchicalRegression(Program):
    """Partial pooling (Gelman and Hill 2007, Data Analysis Using Regression and Multilevel/Hierarchical Models, chapter 12).

    intercept ~ N(0, prior_scale^2), coefficients_k ~ N(0, prior_scale^2), group_scale, noise ~ half-normal(prior_scale),
    group_intercept_j ~ N(intercept, group_scale^2), target_i ~ N(group_intercept_group(i) + coefficients . x_i, noise^2)

    Reads `features` (predictors), `group` (one-hot) and `target`. A predictor that is the same for all rows of a group is a
    predictor of the group. prior_scale: should be large beside the target's spread. centered: sample group_intercept itself, which
    suits groups of many rows; otherwise intercept + group_scale * offset with offset ~ N(0, 1), which suits groups of few.
    """

    prior_scale: float = 10.0
    centered: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if not self.prior_scale > 0:
            raise ValueError(f"prior_scale = {self.prior_scale}: must be positive")

    def program(self, batch: Batch, spec: DataSpec) -> None:
        """Sites intercept, coefficients, group_scale, noise, group_intercept, unless centered offset. Raises ConfigError for other data."""
        need(spec, "hierarchical_regression", "iris_sepals", "features", "group", "target")
        numpyro, dist = load_numpyro()
        (features,), (groups,) = spec.elements["features"].shape, spec.elements["group"].shape
        wide = dist.Normal(0.0, self.prior_scale)
        intercept = numpyro.sample("intercept", wide)
        coefficients = numpyro.sample("coefficients", wide.expand([features]).to_event(1))
        group_scale = numpyro.sample("group_scale", dist.HalfNormal(self.prior_scale))
        noise = numpyro.sample("noise", dist.HalfNormal(self.prior_scale))
        if self.centered:
            about = dist.Normal(intercept, group_scale).expand([groups])
            group_intercept = numpyro.sample("group_intercept", about.to_event(1))
        else:
            offset = numpyro.sample("offset", dist.Normal(0.0, 1.0).expand([groups]).to_event(1))
            group_intercept = numpyro.deterministic("group_intercept", intercept + group_scale * offset)
        mean = batch["group"] @ group_intercept + batch["features"] @ coefficients
        numpyro.sample("target", dist.Normal(mean, noise), obs=batch["target"])
