"""How far apart two outputs are: of their magnitude, masks left out, and infinitely where they are not alike."""

import numpy as np
import pytest

from assay_export.compare import difference


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


@pytest.mark.parametrize("mask", [-65504.0, -1e30])
def test_a_mask_may_be_as_low_as_its_dtype_has_it(mask: float) -> None:
    found = logits()
    found[..., 6:] = mask
    assert difference(found, logits()).max_abs == 0


def test_a_mask_that_is_lost_is_a_difference() -> None:
    found = logits()
    found[..., 7] = 0.0
    assert difference(found, logits()).max_abs > 0.5


def test_what_is_not_finite_or_of_another_shape_is_infinitely_far() -> None:
    live = logits()
    assert not difference(np.where(live > 1, np.nan, live), live).finite
    assert not difference(live[:1], live).finite
