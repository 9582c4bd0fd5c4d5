"""A transformer learns sums from rewards alone, and to prefer right sums; through the whole machinery."""

from pathlib import Path

import pytest

from assay import config
from assay.train.launch import start

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.slow
def test_rewards_alone_teach_sums(tmp_path) -> None:
    # Chance is 1 of 144. The whole experiment has 800 steps and ends above 0.9.
    fewer = [
        "experiment.steps=120",
        "experiment.evaluate_every=0",
        "parallelism.data_parallel.data=1",
        "schedule.cosine.decay_steps=800",
    ]
    finished = start(config.load(EXPERIMENTS / "arithmetic_grpo.gin", fewer), tmp_path)
    assert finished.values["validation/exact_match"] > 0.5


@pytest.mark.slow
def test_preferences_are_learned(tmp_path) -> None:
    fewer = ["experiment.steps=100", "experiment.evaluate_every=0", "parallelism.data_parallel.data=1"]
    finished = start(config.load(EXPERIMENTS / "arithmetic_dpo.gin", fewer), tmp_path)
    assert finished.values["validation/accuracy"] > 0.95
