"""The sums: right, wrong where they are meant to be, and divided as asked."""

import numpy as np
import pytest

from assay_plugins.datasets.arithmetic import Arithmetic


def texts(dataset: Arithmetic, split: str, name: str) -> list[str]:
    decode = dataset.spec().encoder.decode
    return [decode(row) for row in dataset.source(split).arrays[name]]


def test_every_sum_is_there_once_with_its_answer() -> None:
    found = [
        p + a
        for p, a in zip(texts(Arithmetic(), "train", "prompt"), texts(Arithmetic(), "train", "answer"), strict=True)
    ]
    assert sorted(found) == sorted(f"{a}+{b}={a + b:02}" for a in range(10) for b in range(10))


def test_rejected_answers_are_wrong_and_differ_nowhere_else() -> None:
    arrays = Arithmetic(top=37).source("train").arrays
    counted = arrays["targets"] >= 0
    assert (counted == (arrays["rejected_targets"] >= 0)).all()
    assert (np.where(counted, arrays["targets"] != arrays["rejected_targets"], False).any(1)).all()
    prompt = arrays["prompt"].shape[1]
    assert (arrays["inputs"][:, :prompt] == arrays["rejected_inputs"][:, :prompt]).all()


def test_targets_are_the_inputs_successors() -> None:
    arrays = Arithmetic(top=20).source("train").arrays
    inner = arrays["targets"][:, :-1]
    assert (inner[inner >= 0] == arrays["inputs"][:, 1:][inner >= 0]).all()
    assert (arrays["targets"][:, -arrays["answer"].shape[1] :] == arrays["answer"]).all()


def test_held_out_sums_are_in_validation_alone() -> None:
    dataset = Arithmetic(held_out=0.25)
    train, held = ({*texts(dataset, split, "prompt")} for split in ("train", "validation"))
    assert len(held) == 25
    assert not train & held
    assert len(train | held) == 100


@pytest.mark.parametrize("fields", [{"top": 0}, {"top": 1000}, {"held_out": 1.0}, {"held_out": -0.1}])
def test_settings_out_of_range(fields) -> None:
    with pytest.raises(ValueError, match="must be"):
        Arithmetic(**fields)
