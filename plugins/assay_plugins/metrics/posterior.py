"""Summaries of a posterior: mean and standard deviation of each site, and how well they are known."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from assay.data.spec import DataSpec
from assay.errors import ConfigError, did_you_mean
from assay.outcome import Outcome
from assay_plugins.bayes import diagnostics
from assay_plugins.bayes.outcome import PosteriorOutcome
from assay_plugins.metrics.common import State, added

CHAINS, DRAWS = "chains/", "draws/"
SAMPLER = ("mean", "sd", "mcse", "mcse_sd", "r_hat", "ess")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posterior:
    """Values `<site>/mean`, `<site>/sd` and so on; for an array `<site>[i]/mean` of each element, from 0.

    Of a sampler's draws also `mcse` and `mcse_sd`, the Monte Carlo standard errors of the two; `r_hat`, rank-normalised and
    split, which should be below 1.01, and `ess`, the bulk effective sample size (Vehtari et al. 2021, arXiv:1903.08008); and over
    all these sites `r_hat_max`, `ess_min`, `divergences` and `draws`. A guide's draws are independent: those would say nothing of it.

    sites: names of latent or deterministic sites; None for all. The draws do not depend on the split.
    """

    sites: Sequence[str] | None = None

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Every draw times the batch's weight, so that sums over batches, divided by all weight, are the draws again.

        Raises ConfigError for an objective that gives none, and for a site that there is not.
        """
        if not isinstance(outcome, PosteriorOutcome):
            raise ConfigError(
                "experiment.metrics: metric posterior needs draws, which only @objective.elbo() and @objective.mcmc() give; "
                "remove @metric.posterior()"
            )
        weight = jnp.sum(outcome.weights.astype(jnp.float32))
        prefix, draws = (CHAINS, outcome.chains) if outcome.count is not None else (DRAWS, outcome.draws)
        chosen = list(draws) if self.sites is None else list(self.sites)
        for name in chosen:
            if name not in draws:
                raise ConfigError(
                    f"metric.posterior.sites: there is no site '{name}'; there are {', '.join(draws)}."
                    f"{did_you_mean(name, draws)}"
                )
        state = {f"{prefix}{name}": draws[name] * weight for name in chosen} | {"weight": weight}
        if outcome.count is not None and outcome.divergences is not None:
            state |= {"count": outcome.count * weight, "divergences": outcome.divergences * weight}
        return state

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """The summaries; NaN before there are draws, and for an empty split."""
        weight = float(state["weight"])
        mean = {k: v / weight if weight > 0 else v * np.nan for k, v in state.items() if k != "weight"}
        count = round(float(mean["count"])) if "count" in mean and weight > 0 else 0
        values: dict[str, float] = {}
        for key, draws in mean.items():
            if key.startswith(CHAINS):
                for name, x in _elements(key.removeprefix(CHAINS), draws, 2):
                    values |= {f"{name}/{k}": v for k, v in _of_chains(x[:, :count]).items()}
            elif key.startswith(DRAWS):
                for name, x in _elements(key.removeprefix(DRAWS), draws, 1):
                    values |= {f"{name}/mean": float(np.mean(x)), f"{name}/sd": float(np.std(x, ddof=1))}
        return values | (_overall(values, mean, count) if "count" in mean else {})


def _of_chains(draws: np.ndarray) -> dict[str, float]:
    """The values of one scalar, draws (chains, draws)."""
    if draws.shape[1] < diagnostics.LEAST_DRAWS:
        return dict.fromkeys(SAMPLER, float("nan"))
    return {
        "mean": float(np.mean(draws)),
        "sd": float(np.std(draws, ddof=1)),
        "mcse": diagnostics.standard_error(draws),
        "mcse_sd": diagnostics.standard_error_of_deviation(draws),
        "r_hat": diagnostics.r_hat(draws),
        "ess": diagnostics.bulk_size(draws),
    }


def _overall(values: dict[str, float], mean: State, count: int) -> dict[str, float]:
    """The worst of the sites, and what concerns all of them."""
    ends = {end: [v for k, v in values.items() if k.endswith(end)] for end in ("/r_hat", "/ess")}
    return {
        "r_hat_max": max(ends["/r_hat"], default=float("nan")),
        "ess_min": min(ends["/ess"], default=float("nan")),
        "divergences": float(mean["divergences"]),
        "draws": float(count),
    }


def _elements(name: str, draws: np.ndarray, leading: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, draws) of every scalar in an array of draws."""
    shape = draws.shape[leading:]
    flat = draws.reshape(*draws.shape[:leading], -1)
    for i, index in enumerate(np.ndindex(shape)):
        yield f"{name}[{','.join(map(str, index))}]" if index else name, flat[..., i]
