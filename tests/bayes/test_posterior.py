"""Posterior summaries: diagnostics against closed forms, and the metric over batches."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.kinds import Metric
from assay.outcome import Outcome
from assay_plugins.bayes import diagnostics
from assay_plugins.bayes.outcome import PosteriorOutcome
from assay_plugins.metrics.posterior import Posterior

SPEC = DataSpec({})


def chains(correlation, chains=4, draws=20_000, seed=0):
    """Stationary autoregressive chains of standard normals: their effective size is draws (1 - correlation) / (1 + correlation)."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(draws, chains)) * math.sqrt(1 - correlation**2)
    noise[0] /= math.sqrt(1 - correlation**2)
    found = noise.copy()
    for i in range(1, draws):
        found[i] = correlation * found[i - 1] + noise[i]
    return found.T


@pytest.mark.parametrize("correlation", [-0.3, 0.0, 0.5, 0.9])
def test_the_effective_size_of_autoregressive_chains(correlation):
    draws = chains(correlation)
    size = draws.size * (1 - correlation) / (1 + correlation)
    assert diagnostics.bulk_size(draws) == pytest.approx(size, rel=0.08)
    assert diagnostics.standard_error(draws) == pytest.approx(1 / math.sqrt(size), rel=0.05)
    assert diagnostics.r_hat(draws) < 1.01
    # Squares of such a chain are correlated as correlation^2; the variance of a square is 2.
    of_squares = draws.size * (1 - correlation**2) / (1 + correlation**2)
    assert diagnostics.standard_error_of_deviation(draws) == pytest.approx(math.sqrt(0.5 / of_squares), rel=0.08)


def test_chains_that_disagree_in_place_in_spread_or_in_time():
    draws = chains(0.0, draws=1000)
    apart, wider = draws.copy(), draws.copy()
    apart[0] += 1.0
    wider[0] *= 3.0
    drifting = draws + np.linspace(-1, 1, 1000)
    for wrong in (apart, wider, drifting):
        assert diagnostics.r_hat(wrong) > 1.05
    assert diagnostics.r_hat(draws) < 1.01
    heavy = np.random.default_rng(0).standard_cauchy((4, 1000))
    assert diagnostics.r_hat(heavy) < 1.01  # ranks have a variance where the draws have none


def test_too_few_draws_say_nothing():
    draws = np.zeros((4, 3))
    assert all(math.isnan(f(draws)) for f in (diagnostics.r_hat, diagnostics.bulk_size, diagnostics.standard_error))


def outcome(draws, rows=4, count=None):
    there = {"a": jnp.asarray(draws, jnp.float32), "b": jnp.stack([jnp.asarray(draws, jnp.float32)] * 2, axis=-1) * 2}
    return PosteriorOutcome(
        losses=jnp.zeros(rows),
        weights=jnp.ones(rows),
        chains=there,
        count=jnp.asarray(draws.shape[1] if count is None else count),
        divergences=jnp.asarray(3.0),
    )


def state(metric, found):
    return {k: np.asarray(v, np.float64) for k, v in metric.update(found, SPEC).items()}


def test_a_summary_of_chains_whatever_the_batches():
    metric, draws = Posterior(), chains(0.5, draws=400)
    assert isinstance(metric, Metric)
    whole = metric.compute(state(metric, outcome(draws, rows=10)))
    parts = [state(metric, outcome(draws, rows=n)) for n in (3, 6, 1)]
    for a, b, c in ((0, 1, 2), (2, 0, 1)):
        merged = metric.compute(metric.merge(metric.merge(parts[a], parts[b]), parts[c]))
        assert merged == pytest.approx(whole, rel=1e-4)
    assert whole["a/mean"] == pytest.approx(draws.mean(), abs=1e-5)
    assert whole["b[1]/sd"] == pytest.approx(2 * draws.std(ddof=1), rel=1e-5)
    assert whole["a/mcse"] == pytest.approx(diagnostics.standard_error(draws), rel=1e-4)
    assert whole["r_hat_max"] == max(v for k, v in whole.items() if k.endswith("/r_hat"))
    assert whole["ess_min"] == min(v for k, v in whole.items() if k.endswith("/ess"))
    assert (whole["divergences"], whole["draws"]) == (3, 400)


def test_only_the_draws_that_are_there_count():
    metric, draws = Posterior(sites=("a",)), chains(0.0, draws=100)
    unfinished = draws.copy()
    unfinished[:, 60:] = 1e6
    found = metric.compute(state(metric, outcome(unfinished, count=60)))
    assert found["a/mean"] == pytest.approx(draws[:, :60].mean(), abs=1e-5)
    assert found["draws"] == 60


def test_before_there_are_draws_and_without_any_row_names_are_there_and_values_are_not():
    metric, draws = Posterior(), chains(0.0, draws=10)
    full = metric.compute(state(metric, outcome(draws)))
    for found in (outcome(draws, count=0), outcome(draws, rows=0)):
        values = metric.compute(state(metric, found))
        assert values.keys() == full.keys()
        assert math.isnan(values["a/mean"])
        assert math.isnan(values["r_hat_max"])


def test_independent_draws_of_a_guide_have_no_diagnostics():
    draws = np.random.default_rng(0).normal(size=50)
    found = PosteriorOutcome(jnp.zeros(4), jnp.ones(4), draws={"a": jnp.asarray(draws, jnp.float32)})
    values = Posterior().compute(state(Posterior(), found))
    assert values == pytest.approx({"a/mean": draws.mean(), "a/sd": draws.std(ddof=1)}, rel=1e-5, abs=1e-6)


def test_other_objectives_and_other_sites_are_refused():
    with pytest.raises(ConfigError, match="metric posterior needs draws"):
        Posterior().update(Outcome(jnp.zeros(2), jnp.ones(2)), SPEC)
    with pytest.raises(ConfigError, match=r"no site 'c'; there are a, b"):
        Posterior(sites=("c",)).update(outcome(chains(0.0, draws=10)), SPEC)
