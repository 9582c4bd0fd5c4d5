"""Variational inference against closed forms: guides, the bound, its estimate from parts of the data, and meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from flax import nnx
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy.stats import multivariate_normal

from assay.errors import ConfigError
from assay.network import make_network
from assay.plan.plan import spec_of
from assay_plugins.bayes.guides import make_guide
from assay_plugins.datasets.eight_schools import EightSchools as Schools
from assay_plugins.models.eight_schools import EightSchools
from assay_plugins.models.svi import SVI
from assay_plugins.objectives.elbo import ELBO
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.parallelism.fsdp import FSDP


def module_of(model, dataset, change=lambda params: params):
    network = make_network(model, spec_of(dataset))
    params, stats = network.init(jax.random.key(0))
    return network.merge(change(params), stats)


@pytest.mark.parametrize("family", ["normal", "multivariate_normal"])
def test_the_density_of_a_draw_is_that_of_its_distribution(family):
    shapes = {"a": (2,), "b": (), "c": (2, 2)}
    guide = make_guide(family, shapes, {}, radius=1.0, scale=0.3, rngs=nnx.Rngs(0))
    if family == "multivariate_normal":
        guide.lower[...] = jax.random.normal(jax.random.key(1), (7, 7))
    flat = lambda position: np.concatenate([np.ravel(position[name]) for name in shapes])
    draws = jax.jit(jax.vmap(guide.draw))(jax.random.split(jax.random.key(2), 20_000))
    everything = np.concatenate([np.asarray(draws[0][n]).reshape(20_000, -1) for n in shapes], axis=1)
    if family == "normal":
        mean = flat({n: guide.location[n][...] for n in shapes})
        factor = np.diag(np.exp(flat({n: guide.log_scale[n][...] for n in shapes})))
    else:
        mean = np.asarray(guide.location[...])
        factor = np.exp(guide.log_scale[...])[:, None] * (np.eye(7) + np.tril(guide.lower[...], -1))
    covariance = factor @ factor.T
    expected = multivariate_normal(mean, covariance).logpdf(everything)
    np.testing.assert_allclose(draws[1], expected, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(np.cov(everything.T), covariance, atol=0.05 * np.max(covariance))
    np.testing.assert_allclose(everything.mean(0), mean, atol=5 * np.sqrt(np.max(covariance) / 20_000))


@pytest.mark.slow
def test_a_full_covariance_reaches_the_closed_form_posterior(world):
    plan, state, losses = world.trained(
        world.svi(world.program, world.table, steps=3000, particles=16, guide="multivariate_normal")
    )
    mean, covariance, evidence = world.program.exact(world.rows_of(world.table))
    guide = plan.module(state).guide
    factor = np.exp(guide.log_scale[...])[:, None] * (np.eye(8) + np.tril(guide.lower[...], -1))
    deviations = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(guide.location[...], mean, atol=0.03 * np.max(deviations))
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=0.05 * np.max(covariance))
    # The bound is tight, and then no draw changes it: log p(y, w) - log q(w) is the evidence for every w.
    np.testing.assert_allclose(losses[-100:], -evidence / 64, rtol=2e-3)


def test_independent_normals_reach_the_closed_form_of_their_optimum(world):
    plan, state, _ = world.trained(world.svi(world.program, world.table, steps=800, particles=8))
    mean, covariance, _ = world.program.exact(world.rows_of(world.table))
    guide = plan.module(state).guide
    best = 1 / np.sqrt(np.diag(np.linalg.inv(covariance)))  # Bishop 2006, section 10.1.2: the precision's own diagonal
    np.testing.assert_allclose(guide.location["w"][...], mean, atol=0.1 * np.max(best))
    np.testing.assert_allclose(np.exp(guide.log_scale["w"][...]), best, rtol=0.1)


def test_a_point_reaches_the_mode(world):
    plan, state, _ = world.trained(
        world.svi(world.program, world.table, steps=2000, peak=0.1, particles=1, guide="delta")
    )
    mean, _, _ = world.program.exact(world.rows_of(world.table))
    np.testing.assert_allclose(plan.module(state).guide.location["w"][...], mean, atol=2e-3)


def test_a_program_alone_is_its_mode(world):
    module = module_of(world.program, world.table)
    assert type(module.guide).__name__ == "Delta"
    assert module(world.rows_of(world.table), train=False, rngs=None).shape == (64, 2)


def bound_of(module, rows, particles=8000):
    """The objective's losses in training, float64."""

    def losses(rows, key):
        return ELBO(particles=particles)(module, rows, train=True, rngs=nnx.Rngs(key)).losses

    return np.asarray(jax.jit(losses)(rows, jax.random.key(0)), np.float64)


def test_the_bound_is_numpyros(world):
    """On a program with constrained sites, at parameters that are far from the optimum."""
    program, dataset = EightSchools(), Schools()
    rows, spec = world.rows_of(dataset), spec_of(dataset)
    module = module_of(SVI(of=program, init_scale=0.4), dataset)
    model = lambda rows: program.program(rows, spec)
    guide = AutoNormal(model)
    numpyro.handlers.seed(guide, jax.random.key(0))(rows)
    params = {f"{n}_auto_loc": module.guide.location[n][...] for n in module.guide.location}
    params |= {f"{n}_auto_scale": jnp.exp(module.guide.log_scale[n][...]) for n in module.guide.log_scale}
    loss = jax.jit(lambda key: Trace_ELBO(num_particles=2000).loss(key, params, model, guide, rows))
    expected = np.asarray([loss(jax.random.key(i)) for i in range(4)])
    error = np.sqrt(expected.var(ddof=1) / 4)
    assert error < 0.02 * abs(expected.mean())
    # As many particles here as there, so the difference has about twice the variance.
    assert abs(expected.mean() - 8 * bound_of(module, rows).mean()) < 4 * np.sqrt(2) * error


def test_parts_of_the_data_estimate_the_bound_over_all_of_it(world):
    module, rows = module_of(SVI(of=world.program), world.table), world.rows_of(world.table)
    whole = bound_of(module, rows).mean()
    parts = [{k: v[i : i + 16] for k, v in rows.items()} for i in range(0, 64, 16)]
    losses = [bound_of(module, part).mean() for part in parts]
    np.testing.assert_allclose(np.mean(losses), whole, rtol=1e-5)
    assert np.std(losses) > 0.01 * whole


def test_the_prior_counts_once_for_all_rows_whatever_the_batch(world):
    many = dataclasses.replace(world.table, rows=6400)
    module, rows = module_of(SVI(of=world.program), many), world.rows_of(world.table)
    found = jax.jit(lambda rows, key: module.bound(rows, key, 500))(rows, nnx.Rngs(jax.random.key(0)).guide())
    expected = float(found.misfit.mean() + found.divergence / 6400)
    np.testing.assert_allclose(bound_of(module, rows, 500).mean(), expected, rtol=1e-5)
    assert float(found.divergence) > 1


@pytest.mark.parametrize("mesh", [DataParallel(), FSDP()], ids=["data 8", "fsdp 8"])
def test_eight_devices_have_the_losses_of_one(world, mesh):
    one = world.svi(world.program, world.table, steps=50)
    _, _, alone = world.trained(one)
    plan, state, losses = world.trained(dataclasses.replace(one, parallelism=mesh))
    np.testing.assert_allclose(losses, alone, rtol=2e-5)
    location = state.params["guide"]["location"]["w"]
    assert len(location.sharding.device_set) == 8
    assert location.addressable_shards[0].data.shape == ((1,) if isinstance(mesh, FSDP) else (8,))
    assert plan.device_count == 8


def test_evaluation_gives_the_predictive_density(world):
    """Against the closed form: the mean over the exact posterior is normal (Bishop 2006, equation 3.58)."""
    rows = world.rows_of(world.table)
    mean, covariance, _ = world.program.exact(rows)
    factor = np.linalg.cholesky(covariance)
    deviations = np.diag(factor)

    def exactly(params):
        guide = params["guide"]
        lower = jnp.asarray(factor / deviations[:, None], jnp.float32)
        log_scale = jnp.log(jnp.asarray(deviations, jnp.float32))
        return {"guide": guide | {"location": jnp.asarray(mean, jnp.float32), "log_scale": log_scale, "lower": lower}}

    module = module_of(SVI(of=world.program, guide="multivariate_normal", draws=4000), world.table, exactly)
    outcome, moments = jax.jit(
        lambda rows: (ELBO()(module, rows, train=False, rngs=None), module(rows, train=False, rngs=None))
    )(rows)
    x, y = np.asarray(rows["features"], np.float64), np.asarray(rows["target"], np.float64)
    variance = world.program.NOISE**2 + np.einsum("nf,fg,ng->n", x, covariance, x)
    expected = 0.5 * (y - x @ mean) ** 2 / variance + 0.5 * np.log(2 * np.pi * variance)
    np.testing.assert_allclose(outcome.losses, expected, atol=0.04)
    np.testing.assert_allclose(moments[:, 0], x @ mean, atol=0.03)
    np.testing.assert_allclose(moments[:, 1], np.sqrt(variance), rtol=0.01)


def test_the_bound_needs_the_number_of_rows(world):
    network = make_network(SVI(of=world.program), world.table.spec())
    module = network.merge(*network.init(jax.random.key(0)))
    with pytest.raises(ConfigError, match=r"DataSpec\.examples is None; make the description by .*spec_of"):
        ELBO()(module, world.rows_of(world.table), train=True, rngs=nnx.Rngs(0))


def test_the_bound_needs_a_guide(world):
    sampler = world.nuts(world.program, world.table).model
    with pytest.raises(ConfigError, match=r"objective\.elbo needs @model\.svi\(\)"):
        ELBO()(module_of(sampler, world.table), world.rows_of(world.table), train=True, rngs=None)


@pytest.mark.parametrize(
    ("plugin", "wrong"),
    [
        (SVI, {"of": EightSchools(), "draws": 0}),
        (SVI, {"of": EightSchools(), "init_scale": 0.0}),
        (SVI, {"of": EightSchools(), "init_radius": -1.0}),
        (ELBO, {"particles": 0}),
    ],
)
def test_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        plugin(**wrong)
