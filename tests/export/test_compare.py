"""How far apart two outputs are: of their magnitude, masks left out, and infinitely where they are not alike."""

import dataclasses

import numpy as np
import pytest

from assay_export import compare
from assay_export.compare import Difference, difference


def logits() -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    found[..., 6:] = -1e30  # padding of the vocabulary
    return found


def test_a_fault_is_seen_beside_a_mask() -> None:
    live = logits()
    found = live.copy()
    found[0, 0, 0] += 0.01
    assert difference(live, live).max_abs == 0
    assert 2e-3 < difference(found, live).max_abs < 1e-2


@pytest.mark.parametrize("live_mask", [-1e30, -np.inf])
@pytest.mark.parametrize("mask", [-65504.0, -1e30, -np.inf])
def test_a_mask_may_be_as_low_as_its_dtype_has_it(mask: float, live_mask: float) -> None:
    found, live = logits(), logits()
    found[..., 6:], live[..., 6:] = mask, live_mask
    found[1], live[1] = mask, live_mask  # a row of nothing else
    assert difference(found, live) == Difference(0.0, 0.0, 1.0, 0.0)
    found[0, 0, 0] = mask
    assert not difference(found, live).within(1e-2)


def test_a_mask_that_is_lost_is_a_difference() -> None:
    found = logits()
    found[..., 7] = 0.0
    assert difference(found, logits()).max_abs > 0.5


def test_what_is_not_finite_or_of_another_shape_is_infinitely_far() -> None:
    live = logits()
    assert not difference(np.where(live > 1, np.nan, live), live).finite
    assert not difference(live[:1], live).finite


def test_the_whole_counts_beside_the_largest() -> None:
    live = np.full((2, 3, 8), 0.1, np.float32)
    live[0, 0, 0] = 100.0
    found = difference(1.5 * live - 50 * (live > 1), live)  # all but the largest are half as large again
    assert found.max_abs < 1e-3
    assert found.norm < 1e-2
    assert not found.within(1e-3)


def test_another_argmax_must_be_a_near_tie() -> None:
    live = np.zeros((4, 3), np.float32)
    live[:, 0], live[:, 1] = 1.0, [0.0, 0.0, 0.0, 0.999]
    near, far = live.copy(), live.copy()
    near[3, :2] = [0.999, 1.0]
    far[0, :2] = [0.0, 1.0]
    assert (difference(near, live).argmax, difference(live, live).margin) == (0.75, 0.0)
    assert difference(near, live).margin == pytest.approx(1e-3, rel=1e-3)
    assert difference(near, live).within(2e-3)
    assert difference(far, live).margin == 1.0
    slight = dataclasses.replace(difference(near, live), max_abs=0.0, norm=0.0)
    assert not slight.within(5e-4)


@pytest.mark.parametrize("block", [1, 8, 24, 1 << 20])
def test_large_outputs_are_compared_some_rows_at_a_time(block: int, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    live, off = rng.normal(size=(5, 7, 8)), 0.3 * rng.normal(size=(5, 7, 8))
    monkeypatch.setattr(compare, "BLOCK", block)
    found = difference(live + off, live)
    right, taken = live.argmax(-1), (live + off).argmax(-1)
    leads = np.max(live, -1) - np.take_along_axis(live, taken[..., None], -1)[..., 0]
    wanted = [
        np.abs(off).max() / np.abs(live).max(),
        np.linalg.norm(off) / np.linalg.norm(live),
        np.mean(right == taken),
    ]
    np.testing.assert_allclose([found.max_abs, found.norm, found.argmax], wanted, rtol=1e-12)
    assert found.margin == pytest.approx(leads.max() / np.abs(live).max())
