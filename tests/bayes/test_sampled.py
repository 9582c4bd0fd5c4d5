"""The sampler through the training loop: the posterior that NumPyro's own gives, and the same draws after an interruption."""

import jax
import numpy as np
import pytest
from flax import nnx
from numpyro.infer import MCMC as NumPyroMCMC
from numpyro.infer import NUTS as NumPyroNUTS

from assay import config
from assay.checkpoint.checkpoints import Checkpoints
from assay.errors import ConfigError
from assay.network import make_network
from assay.plan.plan import spec_of
from assay.runs import open_run
from assay.train.launch import restored, resume, start
from assay_plugins.bayes import diagnostics
from assay_plugins.datasets.eight_schools import EightSchools as Schools
from assay_plugins.models.eight_schools import EightSchools
from assay_plugins.models.nuts import NUTS
from assay_plugins.models.svi import SVI
from assay_plugins.objectives.mcmc import MCMC

EXPERIMENT = """
experiment.model = @model.nuts()
model.nuts.of = @model.eight_schools()
model.nuts.chains = 2
model.nuts.warmup = 20
model.nuts.draws = 20
experiment.dataset = @dataset.eight_schools()
experiment.objective = @objective.mcmc()
experiment.metrics = [@metric.posterior()]
metric.posterior.sites = ['tau', 'theta']
experiment.optimizer = @optimizer.sgd()
optimizer.sgd.learning_rate = 1.0
experiment.parallelism = @parallelism.data_parallel()
parallelism.data_parallel.data = 1
experiment.trackers = []
experiment.steps = 40
experiment.batch_size = 8
experiment.steps_per_dispatch = 10
experiment.log_every = 10
experiment.checkpoint_every = 10
experiment.evaluate_splits = ['train']
experiment.keep_checkpoints = 4
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    return start(config.load_text(EXPERIMENT, "whole.gin"), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "lost",
    [pytest.param((40, 30, 20), id="within the warm-up"), pytest.param((40,), id="after it", marks=pytest.mark.slow)],
)
def test_a_resumed_run_has_the_draws_of_an_uninterrupted_one(tmp_path, whole, lost):
    cut = start(config.load_text(EXPERIMENT, "cut.gin"), tmp_path).run
    checkpoints = Checkpoints(cut.checkpoints)
    for step in lost:
        checkpoints._manager.delete(step)
    checkpoints.close()
    finished = resume(open_run(cut.id, tmp_path))
    assert finished.values == whole.values
    one, two = restored(whole.run)[1], restored(cut)[1]
    assert int(one.stats["state"].i[0]) == 40
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_evaluates_to_summaries_of_its_draws(whole):
    plan, state, _ = restored(whole.run)
    found = plan.module(state).predict({k: jax.numpy.asarray(v) for k, v in Schools().source("train").arrays.items()})
    tau = np.asarray(found.sites["tau"], np.float64)
    assert tau.shape == (2, 20)
    assert whole.values["train/tau/mean"] == pytest.approx(tau.mean(), rel=1e-6)
    assert whole.values["train/theta[7]/sd"] == pytest.approx(
        np.asarray(found.sites["theta"])[..., 7].std(ddof=1), rel=1e-5
    )
    assert whole.values["train/draws"] == 20
    np.testing.assert_allclose(
        found.sites["theta"],
        found.sites["mu"][..., None] + tau[..., None] * found.sites["offset"],
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.slow
def test_the_posterior_is_that_of_numpyros_own_sampler(world):
    program, dataset = EightSchools(), Schools()
    settings = {"warmup": 500, "draws": 2000, "target_acceptance": 0.95}
    plan, state, _ = world.trained(world.nuts(program, dataset, **settings))
    rows, spec = world.rows_of(dataset), dataset.spec()
    ours = plan.module(state).predict(rows).sites
    kernel = NumPyroNUTS(lambda rows: program.program(rows, spec), target_accept_prob=0.95)
    theirs = NumPyroMCMC(
        kernel, num_warmup=500, num_samples=2000, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    theirs.run(jax.random.key(0), rows)
    expected = theirs.get_samples(group_by_chain=True)
    assert set(ours) == set(expected)
    for name in ("mu", "tau", "theta"):
        for one, two in zip(
            *(np.moveaxis(np.asarray(x[name], np.float64).reshape(4, 2000, -1), 2, 0) for x in (ours, expected)),
            strict=True,
        ):
            assert diagnostics.r_hat(one) < 1.01
            error = np.hypot(*map(diagnostics.standard_error, (one, two)))
            assert abs(one.mean() - two.mean()) < 4 * error
            error = np.hypot(*map(diagnostics.standard_error_of_deviation, (one, two)))
            assert abs(one.std() - two.std()) < 4 * error


@pytest.mark.slow
def test_sampling_reaches_a_closed_form_posterior(world):
    plan, state, losses = world.trained(world.nuts(world.program, world.table, warmup=200, draws=500))
    mean, covariance, _ = world.program.exact(world.rows_of(world.table))
    draws = np.asarray(plan.module(state).kept["w"][...], np.float64)
    for i in range(8):
        assert abs(draws[..., i].mean() - mean[i]) < 4 * diagnostics.standard_error(draws[..., i])
        assert draws[..., i].std() == pytest.approx(np.sqrt(covariance[i, i]), rel=0.15)
    # The potential's expectation is that of its minimum plus half a nat for each of the 8 dimensions.
    assert np.std(losses[-400:]) < 0.1
    assert int(plan.module(state).divergences[...].sum()) == 0


def test_a_part_of_the_rows_is_refused(world):
    network = make_network(NUTS(of=world.program, chains=1, warmup=4, draws=4), spec_of(world.table))
    module = network.merge(*network.init(jax.random.key(0)))
    part = {k: v[:16] for k, v in world.rows_of(world.table).items()}
    with pytest.raises(ConfigError, match=r"needs all 64 rows .* and gets 16: set experiment\.batch_size to 64"):
        MCMC()(module, part, train=True, rngs=nnx.Rngs(0))


def test_sampling_needs_the_number_of_rows(world):
    network = make_network(NUTS(of=world.program, chains=1, warmup=4, draws=4), world.table.spec())
    module = network.merge(*network.init(jax.random.key(0)))
    with pytest.raises(ConfigError, match=r"DataSpec\.examples is None; make the description by .*spec_of"):
        MCMC()(module, world.rows_of(world.table), train=True, rngs=nnx.Rngs(0))


def test_draws_beyond_the_room_for_them_are_not_kept(world):
    network = make_network(NUTS(of=world.program, chains=2, warmup=2, draws=4), spec_of(world.table))
    module = network.merge(*network.init(jax.random.key(0)))
    rows, counts, kept = world.rows_of(world.table), [], []
    step = nnx.jit(lambda module, key: module.advance(rows, key))
    for i in range(9):
        step(module, jax.random.key(i))
        counts.append(int(module.count))
        kept.append(np.asarray(module.kept["w"][...]))
    assert counts == [0, 0, 1, 2, 3, 4, 4, 4, 4]
    assert not kept[1].any()
    np.testing.assert_array_equal(kept[5], kept[8])
    assert not kept[4][:, 3].any()
    assert kept[5].all()


def test_sampling_needs_a_sampler(world):
    network = make_network(SVI(of=world.program), spec_of(world.table))
    with pytest.raises(ConfigError, match=r"objective\.mcmc needs @model\.nuts\(\)"):
        MCMC()(network.merge(*network.init(jax.random.key(0))), world.rows_of(world.table), train=True, rngs=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chains": 0},
        {"warmup": 0},
        {"draws": 3},
        {"target_acceptance": 1.0},
        {"max_tree_depth": 0},
        {"init_radius": -1.0},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NUTS(of=EightSchools(), **wrong)
