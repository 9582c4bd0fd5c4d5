"""Which sizes a signature is tried with."""

import itertools

from assay.exported import Dim, Signature, Tensor

DIMS = {"a": Dim(1, 8), "b": Dim(1, 5), "c": Dim(2, 9), "one": Dim(1, 1), "two": Dim(1, 2)}


def sizes(*shape: int | str, at_most: tuple[tuple[str, str], ...] = ()) -> list[dict[str, int]]:
    return list(Signature({"x": Tensor(shape, "float32")}, {}, at_most=at_most).sizes(DIMS))


def test_sizes_take_in_every_corner_and_every_pair_of_extremes() -> None:
    found = sizes("a", "b", "c", at_most=(("a", "c"),))
    assert found[:3] == [{"a": 1, "b": 1, "c": 2}, {"a": 5, "b": 3, "c": 5}, {"a": 8, "b": 5, "c": 9}]
    for name in "abc":
        assert {each[name] for each in found} == set(DIMS[name].corners)
    for one, other in itertools.combinations("abc", 2):
        pairs = {(each[one], each[other]) for each in found}
        wanted = itertools.product(*((DIMS[name].low, DIMS[name].high) for name in (one, other)))
        assert pairs >= {(a, b) for a, b in wanted if (one, other) != ("a", "c") or a <= b}
    assert all(each["a"] <= each["c"] for each in found)
    assert len(found) == 6


def test_dims_with_few_sizes_are_tried_with_those() -> None:
    assert sizes(2) == [{}]
    assert sizes("one") == [{"one": 1}]
    assert sizes("two", "one") == [{"two": 1, "one": 1}, {"two": 2, "one": 1}]
