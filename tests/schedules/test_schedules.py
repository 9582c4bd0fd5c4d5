"""Schedules against their formulas, and the settings that they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.errors import ConfigError
from assay.kinds import Schedule
from assay_plugins.schedules.constant import Constant
from assay_plugins.schedules.cosine import Cosine
from assay_plugins.schedules.linear import Linear
from assay_plugins.schedules.wsd import WSD


def curve(schedule, total):
    """The rate at every step of a run and at 50 steps after it."""
    return np.asarray(jax.vmap(schedule.build(total))(jnp.arange(total + 50)))


def nanogpt(step, peak=1e-3, warmup=100, end=2000, lowest=1e-4):
    """Learning rate of nanoGPT's train.py at its small CPU setting."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step > end:
        return lowest
    ratio = (step - warmup) / (end - warmup)
    return lowest + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (peak - lowest)


def test_cosine_is_nanogpts():
    ours = curve(Cosine(peak=1e-3, warmup_steps=100, final=0.1), 2000)
    np.testing.assert_allclose(ours, [nanogpt(step) for step in range(2050)], rtol=1e-6, atol=1e-10)


def test_cosine_that_ends_before_the_run():
    ours = curve(Cosine(peak=1e-3, warmup_steps=100, final=0.1, decay_steps=500), 600)
    np.testing.assert_allclose(ours, [nanogpt(step, end=500) for step in range(650)], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_linear(warmup):
    ours = curve(Linear(peak=2.0, warmup_steps=warmup, final=0.25), 40)

    def expected(step):
        if step < warmup:
            return 2.0 * (step + 1) / (warmup + 1)
        return 2.0 * (1 - 0.75 * min(1.0, (step - warmup) / (40 - warmup)))

    np.testing.assert_allclose(ours, [expected(step) for step in range(90)], rtol=1e-6)


def test_constant():
    ours = curve(Constant(peak=0.5, warmup_steps=4), 10)
    np.testing.assert_allclose(ours, [0.1, 0.2, 0.3, 0.4] + [0.5] * 56, rtol=1e-6)


SHAPES = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "sqrt": lambda x: 1 - math.sqrt(x),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("warmup", "fraction"), [(0, 1.0), (5, 0.3), (14, 0.3)])
def test_wsd(shape, warmup, fraction):
    ours = curve(WSD(peak=2.0, warmup_steps=warmup, final=0.1, decay_fraction=fraction, shape=shape), 20)
    start = 20 - round(20 * fraction)

    def expected(step):
        if step < warmup:
            return 2.0 * (step + 1) / (warmup + 1)
        x = min(1.0, max(0, step - start) / (20 - start))
        return 2.0 * (0.1 + 0.9 * SHAPES[shape](x))

    np.testing.assert_allclose(ours, [expected(step) for step in range(70)], rtol=1e-5)


def test_wsd_reaches_its_peak_whatever_the_length():
    short, long = (curve(WSD(peak=1.0, warmup_steps=5), total)[:80] for total in (100, 1000))
    np.testing.assert_array_equal(short, long)


ALL = [Constant, Cosine, Linear, WSD]


@pytest.mark.parametrize("plugin", ALL)
def test_a_plugin_of_its_kind_that_takes_python_and_array_steps(plugin):
    schedule = plugin(peak=1e-3, warmup_steps=2)
    assert isinstance(schedule, Schedule)
    rate = schedule.build(10)
    for step in (0, 1, 2, 9):
        assert float(rate(step)) == pytest.approx(float(jax.jit(rate)(jnp.int32(step))), rel=1e-6)


@pytest.mark.parametrize("plugin", ALL)
@pytest.mark.parametrize(
    "wrong", [{"peak": 0.0}, {"peak": math.inf}, {"peak": math.nan}, {"peak": 1.0, "warmup_steps": -1}]
)
def test_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        plugin(**wrong)


@pytest.mark.parametrize("plugin", ALL)
def test_a_warm_up_longer_than_the_run(plugin):
    with pytest.raises(ConfigError, match=r"warmup_steps = 100.*experiment\.steps = 100"):
        plugin(peak=1.0, warmup_steps=100).build(100)


@pytest.mark.parametrize("plugin", [Cosine, Linear, WSD])
def test_a_final_rate_above_the_peak(plugin):
    with pytest.raises(ValueError, match=r"final = 1\.5"):
        plugin(peak=1.0, final=1.5)


@pytest.mark.parametrize("plugin", [Cosine, Linear])
def test_decay_steps_out_of_range(plugin):
    with pytest.raises(ValueError, match="decay_steps = 0"):
        plugin(peak=1.0, decay_steps=0)
    with pytest.raises(ConfigError, match="warmup_steps = 10 must be less than decay_steps = 10"):
        plugin(peak=1.0, warmup_steps=10, decay_steps=10).build(100)


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_a_decay_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="decay_fraction"):
        WSD(peak=1.0, decay_fraction=fraction)
