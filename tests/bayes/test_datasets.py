"""The tables: what they hold, and the published estimates from them."""

import dataclasses

import numpy as np
import pytest

from assay.errors import DataError
from assay.kinds import Dataset
from assay_plugins.datasets.eight_schools import EightSchools
from assay_plugins.datasets.iris_sepals import IrisSepals


@pytest.mark.parametrize("data", [EightSchools(), IrisSepals()], ids=["eight_schools", "iris_sepals"])
def test_contract(data):
    assert isinstance(data, Dataset)
    example = data.source("train")[0]
    assert {n: (np.shape(v), v.dtype.name) for n, v in example.items()} == {
        n: (a.shape, a.dtype) for n, a in data.spec().elements.items()
    }
    with pytest.raises(DataError, match="no split 'validation'; there are train"):
        data.source("validation")
    assert data.fingerprint() == type(data)().fingerprint()


def test_the_schools_pooled():
    """Gelman et al. 2013, section 5.5: the pooled estimate is 7.7 with a standard error of 4.1."""
    rows = EightSchools().source("train").arrays
    precision = 1 / rows["error"].astype(np.float64) ** 2
    assert round(float(np.average(rows["effect"], weights=precision)), 1) == 7.7
    assert round(float(precision.sum() ** -0.5), 1) == 4.1


def test_the_sepals_have_the_published_regression():
    """R's lm(Sepal.Length ~ Sepal.Width + Species) on its own iris: estimates, and the residual standard error."""
    rows = IrisSepals().source("train").arrays
    x = np.concatenate([np.ones((150, 1)), rows["features"], rows["group"][:, 1:]], axis=1).astype(np.float64)
    found, (squares,), *_ = np.linalg.lstsq(x, rows["target"].astype(np.float64))
    np.testing.assert_allclose(found, [2.2514, 0.8036, 1.4587, 1.9468], atol=1e-4)
    assert round(float(np.sqrt(squares / 146)), 3) == 0.438
    np.testing.assert_array_equal(rows["group"].sum(0), 50)
    np.testing.assert_array_equal(rows["group"].sum(1), 1)
    means = rows["group"].T @ rows["target"] / 50
    np.testing.assert_allclose(means, [5.006, 5.936, 6.588], atol=1e-3)  # as in Fisher 1936


def test_held_out_flowers_are_in_one_split_and_change_with_the_seed():
    data = IrisSepals(validation_fraction=0.2)
    parts = [data.source(split).arrays for split in ("train", "validation")]
    assert [len(p["target"]) for p in parts] == [120, 30]
    together = [np.concatenate([np.column_stack([p[k] for k in ("target", "features", "group")]) for p in parts])]
    whole = IrisSepals().source("train").arrays
    together.append(np.column_stack([whole[k] for k in ("target", "features", "group")]))
    np.testing.assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in together))
    other = dataclasses.replace(data, seed=1)
    assert not np.array_equal(other.source("validation").arrays["target"], parts[1]["target"])
    assert len({d.fingerprint() for d in (data, other, IrisSepals())}) == 3
    with pytest.raises(ValueError, match="validation_fraction"):
        IrisSepals(validation_fraction=1.0)
