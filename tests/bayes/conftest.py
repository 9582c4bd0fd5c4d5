"""A program with a closed-form posterior, its data, and training without a run directory."""

import dataclasses
import functools
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from assay.data.arrays import Arrays
from assay.data.pipeline import train_batches
from assay.data.spec import ArraySpec, DataSpec
from assay.experiment import Experiment
from assay.plan.plan import jitted, make_plan
from assay.train.feed import local_rows, stack, to_devices
from assay.train.state import initial_state
from assay_plugins.bayes.program import Program
from assay_plugins.models.nuts import NUTS
from assay_plugins.models.svi import SVI
from assay_plugins.objectives.elbo import ELBO
from assay_plugins.objectives.mcmc import MCMC
from assay_plugins.optimizers.adamw import AdamW
from assay_plugins.optimizers.sgd import SGD
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.schedules.cosine import Cosine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Program):
    """w ~ N(0, I), target ~ N(features w, NOISE^2): its posterior is normal, and its evidence known."""

    NOISE: ClassVar[float] = 0.5

    def program(self, batch, spec):
        (size,) = spec.elements["features"].shape
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        numpyro.sample("target", dist.Normal(batch["features"] @ w, self.NOISE), obs=batch["target"])

    def axes(self, spec):
        return {"w": ("features",)}

    def exact(self, rows):
        """(mean, covariance, log evidence), by the formulas of Bishop 2006, equations 3.50, 3.51 and 3.86, in float64."""
        x, y = (np.asarray(rows[k], np.float64) for k in ("features", "target"))
        covariance = np.linalg.inv(np.eye(x.shape[1]) + x.T @ x / self.NOISE**2)
        mean = covariance @ x.T @ y / self.NOISE**2
        spread = self.NOISE**2 * np.eye(len(y)) + x @ x.T
        evidence = -0.5 * (y @ np.linalg.solve(spread, y) + np.linalg.slogdet(2 * np.pi * spread)[1])
        return mean, covariance, evidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a regression: predictors that are correlated, and a target."""

    rows: int = 64
    features: int = 8

    def spec(self):
        return DataSpec({"features": ArraySpec((self.features,), "float32"), "target": ArraySpec((), "float32")})

    def source(self, split):
        generator = np.random.default_rng(0)
        x = generator.normal(size=(self.rows, self.features)) @ (np.eye(self.features) + 0.3)
        y = x @ np.linspace(-1, 1, self.features) + 0.5 * generator.normal(size=self.rows)
        return Arrays({"features": (x / 4).astype(np.float32), "target": y.astype(np.float32)})

    def fingerprint(self):
        return f"{self}"


def rows_of(dataset, split="train"):
    """All rows of a split as one batch."""
    arrays = {k: jnp.asarray(v) for k, v in dataset.source(split).arrays.items()}
    return arrays | {"mask": jnp.ones(len(next(iter(arrays.values()))), bool)}


def svi(of, dataset, *, steps=600, batch=None, peak=3e-2, particles=4, parallelism=None, **settings):
    """An experiment that fits a guide."""
    return Experiment(
        model=SVI(of=of, **settings),
        dataset=dataset,
        objective=ELBO(particles=particles),
        optimizer=AdamW(learning_rate=Cosine(peak=peak), weight_decay=0.0),
        parallelism=parallelism or DataParallel(data=1),
        trackers=(),
        steps=steps,
        batch_size=batch or len(dataset.source("train")),
        steps_per_dispatch=50,
    )


def nuts(of, dataset, **settings):
    """An experiment that samples."""
    model = NUTS(of=of, **settings)
    return Experiment(
        model=model,
        dataset=dataset,
        objective=MCMC(),
        optimizer=SGD(learning_rate=1.0),
        parallelism=DataParallel(data=1),
        trackers=(),
        steps=model.warmup + model.draws,
        batch_size=len(dataset.source("train")),
        steps_per_dispatch=50,
    )


def trained(experiment, devices=None):
    """(plan, final state, losses of all steps) of the experiment."""
    plan = make_plan(experiment, devices=devices)
    draw = functools.partial(initial_state, experiment, plan.network, plan.optimizer)
    state = jax.jit(draw, out_shardings=plan.shardings)()
    rows, size = local_rows(plan.layout, experiment.batch_size), plan.steps_per_dispatch
    source = experiment.dataset.source("train")
    batches = train_batches(source, batch_size=experiment.batch_size, seed=0, rows=rows, prefetch=4, workers=0)
    dispatch, losses = jitted(plan, size), []
    for _ in range(experiment.steps // size):
        state, metrics = dispatch(
            state, to_devices(plan.layout, stack([next(batches) for _ in range(size)]), stacked=True)
        )
        losses += np.asarray(metrics["loss"]).tolist()
    batches.close()
    return plan, state, np.asarray(losses)


@pytest.fixture(scope="session")
def world():
    """What the tests of this folder share."""
    return types.SimpleNamespace(
        program=Regression(), table=Table(), rows_of=rows_of, svi=svi, nuts=nuts, trained=trained
    )
