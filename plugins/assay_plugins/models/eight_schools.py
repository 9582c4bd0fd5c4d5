"""The eight schools model: effects of the same treatment in several groups, each known with its own error."""

import dataclasses

import jax.numpy as jnp

from assay.data.spec import DataSpec
from assay.outcome import Batch
from assay_plugins.bayes.optional import load_numpyro
from assay_plugins.bayes.program import Program, need


@dataclasses.dataclass(frozen=True, kw_only=True)
class EightSchools(Program):
    """Rubin 1981; Gelman et al. 2013, Bayesian Data Analysis, section 5.5; priors as in posteriordb's eight_schools models.

    mu ~ N(0, 5^2), tau ~ half-Cauchy(5), theta_j ~ N(mu, tau^2), effect_j ~ N(theta_j, error_j^2)

    Reads `effect`, `error` and `group` (one-hot). centered: sample theta itself; otherwise
    theta = mu + tau * offset with offset ~ N(0, 1), whose posterior has no funnel (Betancourt and Girolami 2013, arXiv:1312.0906).
    """

    centered: bool = False

    def program(self, batch: Batch, spec: DataSpec) -> None:
        """Sites mu, tau, theta, and offset unless centered. Raises ConfigError for other data."""
        need(spec, "eight_schools", "eight_schools", "effect", "error", "group")
        numpyro, dist = load_numpyro()
        (schools,) = spec.elements["group"].shape
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        if self.centered:
            theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([schools]).to_event(1))
        else:
            offset = numpyro.sample("offset", dist.Normal(0.0, 1.0).expand([schools]).to_event(1))
            theta = numpyro.deterministic("theta", mu + tau * offset)
        error = jnp.where(batch.get("mask", True), batch["error"], 1.0)  # rows that only pad have an error of 0
        numpyro.sample("effect", dist.Normal(batch["group"] @ theta, error), obs=batch["effect"])
