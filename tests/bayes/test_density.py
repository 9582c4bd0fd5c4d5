"""The density of a program against NumPyro's own, and the programs that inference refuses."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import potential_energy

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError, PluginError
from assay_plugins.bayes.density import joint, latent_shapes
from assay_plugins.bayes.program import Problem, Program
from assay_plugins.datasets.digits import Digits
from assay_plugins.datasets.eight_schools import EightSchools as Schools
from assay_plugins.datasets.iris_sepals import IrisSepals
from assay_plugins.models.bayesian_mlp import BayesianMLP
from assay_plugins.models.eight_schools import EightSchools
from assay_plugins.models.hierarchical_regression import HierarchicalRegression

SPEC = DataSpec({"target": ArraySpec((), "float32")})
TARGET = {"target": jnp.linspace(-1.0, 2.0, 16), "mask": jnp.ones(16, bool)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Awkward(Program):
    """A support that depends on another site, a simplex, a plate, and two observed sites."""

    def program(self, batch, spec):
        width = numpyro.sample("width", dist.HalfNormal(2.0))
        place = numpyro.sample("place", dist.Uniform(0.0, width))
        shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
        mean = numpyro.deterministic("mean", place + shares[0])
        with numpyro.plate("rows", len(batch["target"])):
            numpyro.sample("target", dist.Normal(mean, width), obs=batch["target"])
            numpyro.sample("again", dist.Normal(shares[1], 1.0), obs=batch["target"])


CASES = {
    "eight schools": (EightSchools(), Schools()),
    "eight schools, centered": (EightSchools(centered=True), Schools()),
    "hierarchical": (HierarchicalRegression(), IrisSepals()),
    "hierarchical, centered": (HierarchicalRegression(centered=True), IrisSepals()),
    "network": (BayesianMLP(hidden=(4,)), Digits()),
    "awkward": (Awkward(), None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_density_is_numpyros(world, name):
    program, dataset = CASES[name]
    spec, rows = (dataset.spec(), world.rows_of(dataset)) if dataset else (SPEC, TARGET)
    problem = Problem(program, spec)
    shapes = latent_shapes(problem)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    position = {n: 0.5 * jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)}
    found = jax.jit(lambda p: joint(problem, p, rows))(position)
    expected = potential_energy(program.program, (rows, spec), {}, position)
    np.testing.assert_allclose(found.potential(), expected, rtol=1e-5)
    assert found.likelihood.shape == (len(rows["mask"]),)
    assert set(shapes) <= set(found.sites)


def test_what_a_network_says_of_a_row_is_normalised(world):
    problem, rows = Problem(BayesianMLP(hidden=(4,)), Digits().spec()), world.rows_of(Digits())
    position = {n: jnp.ones(s) for n, s in latent_shapes(problem).items()}
    found = joint(problem, position, rows)
    assert found.moments is None
    np.testing.assert_allclose(jnp.sum(jnp.exp(found.scores), axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(
        jnp.take_along_axis(found.scores, rows["label"][:, None], axis=1)[:, 0], found.likelihood
    )


def bad(body):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bad(Program):
        def program(self, batch, spec):
            body(batch)

    return Problem(Bad(), SPEC)


def observe(mean, batch):
    numpyro.sample("target", dist.Normal(mean, 1.0), obs=batch["target"])


def test_latent_sites_of_single_rows_are_refused():
    def body(batch):
        observe(numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(batch["target"])])), batch)

    with pytest.raises(PluginError, match="latent z depends on the number of rows"):
        latent_shapes(bad(body))


def test_discrete_latent_sites_are_refused():
    with pytest.raises(PluginError, match="latent z is discrete"):
        latent_shapes(bad(lambda batch: observe(numpyro.sample("z", dist.Bernoulli(0.5)), batch)))


def test_a_program_that_observes_nothing_is_refused():
    with pytest.raises(PluginError, match="needs a latent site and an observed one"):
        latent_shapes(bad(lambda batch: numpyro.sample("z", dist.Normal(0.0, 1.0))))


def test_an_observed_site_that_is_not_one_value_a_row_is_refused():
    def body(batch):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("target", dist.Normal(z, 1.0).expand([len(batch["target"])]).to_event(1), obs=batch["target"])

    with pytest.raises(PluginError, match="observed site target has log densities"):
        joint(bad(body), {"z": jnp.zeros(())}, TARGET)


@pytest.mark.parametrize("program", [EightSchools(), HierarchicalRegression(), BayesianMLP()])
def test_other_data_are_refused_with_a_dataset_that_would_do(program):
    with pytest.raises(ConfigError, match=r"Choose (a dataset such as )?@dataset\."):
        latent_shapes(Problem(program, DataSpec({})))


@pytest.mark.parametrize(
    ("plugin", "wrong"),
    [
        (HierarchicalRegression, {"prior_scale": 0.0}),
        (BayesianMLP, {"hidden": (0,)}),
        (BayesianMLP, {"weight_scale": -1.0}),
    ],
)
def test_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        plugin(**wrong)


def test_without_numpyro_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(PluginError, match=r"pip install assay\[bayes\]"):
        latent_shapes(Problem(EightSchools(), Schools().spec()))
