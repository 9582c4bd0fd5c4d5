"""The shipped digits experiment, made smaller, on scikit-learn's real scans."""

from pathlib import Path

import pytest

from assay import config
from assay.plan.plan import make_plan
from assay.train.launch import start

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "digits_resnet.gin"


def test_on_cpu_a_model_with_convolutions_gets_one_step_a_dispatch():
    assert make_plan(config.load(EXPERIMENT).experiment).steps_per_dispatch == 1
    assert make_plan(config.load(EXPERIMENT.with_name("digits_vit.gin")).experiment).steps_per_dispatch > 1


@pytest.mark.slow
def test_a_small_residual_network_reads_held_out_digits(tmp_path):
    smaller = ["model.resnet.widths=[8, 16]", "experiment.batch_size=32", "experiment.steps=200"]
    smaller += ["schedule.cosine.warmup_steps=10", "experiment.evaluate_every=0", "experiment.checkpoint_every=0"]
    finished = start(config.load(EXPERIMENT, [*smaller, "experiment.trackers=[]"]), tmp_path)
    assert finished.status == "completed"
    assert finished.values["validation/accuracy"] >= 0.9  # 0.944 to 0.964 with five seeds; chance is 0.1
