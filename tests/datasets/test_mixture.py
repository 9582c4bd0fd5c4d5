"""Mixtures: exact proportions in every prefix, nothing left out, components told apart."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.arrays import Arrays
from assay.data.blocks import read
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import DataError
from assay.kinds import Dataset, Source
from assay_plugins.datasets.digits import Digits
from assay_plugins.datasets.mixture import LONGEST_PERIOD, Mixture, interleaved, shares


@dataclasses.dataclass(frozen=True)
class Numbered:
    """`count` examples that say whose they are."""

    owner: int
    count: int
    width: int = 2

    def spec(self) -> DataSpec:
        return DataSpec({"x": ArraySpec((self.width,), "int32")})

    def source(self, split: str) -> Source:
        rows = np.stack([np.full(self.count, self.owner, np.int32), np.arange(self.count, dtype=np.int32)], axis=1)
        return Arrays({"x": rows})

    def fingerprint(self) -> str:
        return f"{self.owner}/{self.count}"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_every_prefix_is_in_proportion(parts: list[int]) -> None:
    pattern = interleaved(parts)
    given_to = np.cumsum(pattern[:, None] == np.arange(len(parts)), axis=0)
    due = np.arange(1, len(pattern) + 1)[:, None] * np.asarray(parts) / sum(parts)
    assert np.abs(given_to - due).max() < 1
    assert given_to[-1].tolist() == parts


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_shares_follow_weights(weights: list[float]) -> None:
    found = shares(weights)
    period = sum(found)
    assert period <= LONGEST_PERIOD
    np.testing.assert_allclose(np.asarray(found) / period, np.asarray(weights) / sum(weights), atol=1 / LONGEST_PERIOD)


def test_simple_shares_are_short() -> None:
    assert shares([0.7, 0.2, 0.1]) == (7, 2, 1)
    assert shares([1, 1, 1]) == (1, 1, 1)
    assert shares([2, 1]) == (2, 1)
    assert sum(shares([1, 2**0.5])) == LONGEST_PERIOD


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=4), data=st.data())
def test_an_epoch_holds_every_example_in_proportion(counts: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.integers(1, 5), min_size=len(counts), max_size=len(counts)))
    mixture = Mixture(datasets=[Numbered(k, n) for k, n in enumerate(counts)], weights=parts)
    source = mixture.source("train")
    found = read(source, np.arange(len(source)))["x"]
    owners = np.bincount(found[:, 0])
    np.testing.assert_allclose(owners / len(source), np.asarray(parts) / sum(parts))
    for k, count in enumerate(counts):
        seen = np.bincount(found[found[:, 0] == k][:, 1], minlength=count)
        assert seen.min() >= 1
        assert seen.max() - seen.min() <= 1
    assert any(owners[k] < 2 * n + parts[k] for k, n in enumerate(counts))


def test_repeats_come_in_another_order() -> None:
    source = Mixture(datasets=[Numbered(0, 20), Numbered(1, 200)], weights=[1, 1]).source("train")
    found = read(source, np.arange(len(source)))["x"]
    repeats = found[found[:, 0] == 0][:, 1].reshape(10, 20)
    assert all(sorted(repeat.tolist()) == list(range(20)) for repeat in repeats)
    assert len({tuple(repeat) for repeat in repeats.tolist()}) == 10


def test_access_is_random_and_sources_travel() -> None:
    mixture = Mixture(datasets=[Numbered(0, 5), Numbered(1, 9)], weights=[0.3, 0.7])
    for split in ("train", "validation"):
        source = pickle.loads(pickle.dumps(mixture.source(split)))
        indices = np.asarray([7, 0, 3, 3, len(source) - 1])
        np.testing.assert_array_equal(read(source, indices)["x"], np.stack([source[int(i)]["x"] for i in indices]))
        with pytest.raises(IndexError):
            source[len(source)]


def test_other_splits_are_joined() -> None:
    source = Mixture(datasets=[Numbered(0, 2), Numbered(1, 3)], weights=[0.9, 0.1]).source("validation")
    assert read(source, np.arange(5))["x"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]


def test_contract() -> None:
    mixture = Mixture(datasets=[Digits(seed=1), Digits(seed=2)], weights=[1, 3])
    assert isinstance(mixture, Dataset)
    assert mixture.spec() == Digits().spec()
    assert mixture.source("train")[0]["image"].shape == (8, 8, 1)
    others = [
        dataclasses.replace(mixture, weights=[1, 2]),
        dataclasses.replace(mixture, datasets=[Digits(), Digits(seed=2)]),
    ]
    assert len({m.fingerprint() for m in [mixture, *others]}) == 3
    assert dataclasses.replace(mixture, weights=[2, 6]).fingerprint() == mixture.fingerprint()


def test_datasets_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="dataset 2 of the mixture differs from the first in elements"):
        Mixture(datasets=[Numbered(0, 2), Numbered(1, 2, width=3)], weights=[1, 1]).source("train")
    with pytest.raises(DataError, match=r"dataset 2 .* in elements, num_classes"):
        Mixture(datasets=[Numbered(0, 2), Digits()], weights=[1, 1]).spec()


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, 1e-6]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Mixture(datasets=[Numbered(0, 2), Numbered(1, 2)], weights=weights)
