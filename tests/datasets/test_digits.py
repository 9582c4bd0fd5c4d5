"""Digits: real scans, in [0, 1], a stratified held-out part."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from assay.data.blocks import read
from assay.errors import DataError
from assay.kinds import Dataset
from assay_plugins.datasets.digits import Digits


def test_contract() -> None:
    data = Digits()
    assert isinstance(data, Dataset)
    spec = data.spec()
    assert (spec.num_classes, spec.units_per_example, spec.unit) == (10, 1, "examples")
    example = data.source("train")[0]
    assert {n: (np.shape(v), v.dtype.name) for n, v in example.items()} == {
        n: (a.shape, a.dtype) for n, a in spec.elements.items()
    }
    with pytest.raises(DataError, match="no split 'test'"):
        data.source("test")


def test_every_scan_is_in_one_split() -> None:
    found = [read(source, np.arange(len(source))) for source in map(Digits().source, ("train", "validation"))]
    assert [len(part["label"]) for part in found] == [1438, 359]
    images = np.concatenate([part["image"] for part in found])
    assert images.min() == 0
    assert images.max() == 1
    original = load_digits().images.reshape(-1, 64)
    np.testing.assert_array_equal(
        np.sort(images.reshape(-1, 64) * 16, axis=0), np.sort(original, axis=0).astype(np.float32)
    )


def test_classes_are_held_out_alike() -> None:
    labels = load_digits().target
    held_out = Digits(validation_fraction=0.3).source("validation").arrays["label"]
    np.testing.assert_allclose(np.bincount(held_out), 0.3 * np.bincount(labels), atol=0.5)


def test_the_draw_depends_on_the_seed_alone() -> None:
    same, other = Digits(seed=1), Digits(seed=2)
    np.testing.assert_array_equal(
        same.source("validation").arrays["image"], Digits(seed=1).source("validation").arrays["image"]
    )
    assert not np.array_equal(same.source("validation").arrays["image"], other.source("validation").arrays["image"])
    changes = [{}, {"seed": 3}, {"validation_fraction": 0.4}]
    assert len({dataclasses.replace(same, **change).fingerprint() for change in changes}) == 3  # type: ignore[arg-type]
