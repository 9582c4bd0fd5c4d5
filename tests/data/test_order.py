"""The global order: a permutation in every epoch, keyed by seed and epoch, without visible structure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.order import shuffled


@given(examples=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(examples: int, seed: int, epoch: int) -> None:
    positions = epoch * examples + np.arange(examples)
    assert sorted(shuffled(positions, examples, seed).tolist()) == list(range(examples))


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_access_is_random(positions: list[int]) -> None:
    together = shuffled(np.asarray(positions), 1000, seed=3)
    assert together.tolist() == [int(shuffled(np.asarray([p]), 1000, seed=3)[0]) for p in positions]


@pytest.mark.parametrize("examples", [2**32 + 7, 2**45])
def test_more_examples_than_32_bits_count(examples: int) -> None:
    found = shuffled(np.arange(10_000), examples, seed=0)
    assert len(set(found.tolist())) == 10_000
    assert found.min() >= 0
    assert found.max() < examples
    assert abs(found.mean() / examples - 0.5) < 0.02


def test_seeds_and_epochs_are_unrelated() -> None:
    orders = [shuffled(e * 1000 + np.arange(1000), 1000, s) for s in range(3) for e in range(3)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.mean(a == b) < 0.01
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_positions_and_neighbours_are_uniform() -> None:
    n, seeds = 12, 1200
    orders = np.stack([shuffled(np.arange(n), n, s) for s in range(seeds)])
    counts = np.stack([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    expected = seeds / n
    assert np.sum((counts - expected) ** 2 / expected) < 200  # chi-square with 121 degrees of freedom: 5 sigma
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % n, minlength=n)[1:]
    assert np.sum((steps - seeds / (n - 1)) ** 2 / (seeds / (n - 1))) < 35


def test_the_order_is_frozen() -> None:
    """A change of these numbers changes every run: raise order.VERSION with it."""
    assert shuffled(np.arange(8), 10, seed=0).tolist() == [2, 1, 5, 7, 4, 8, 3, 6]
    assert shuffled(np.asarray([10**9, 10**12]), 1_003_790, seed=1).tolist() == [226807, 73726]
