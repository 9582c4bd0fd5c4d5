"""Batches: one global order whatever the processes, exact resume at every position, evaluation without loss or repetition."""

import itertools
import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.arrays import Arrays
from assay.data.blocks import HostBatch
from assay.data.pipeline import TrainIterator, evaluation_batches, train_batches
from assay.errors import DataError


class Singly:
    """The same examples without `gather`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"x": np.asarray(index, np.int32), "image": np.full((2, 2), index, np.float32)}


def together(count: int) -> Arrays:
    index = np.arange(count)
    image = np.broadcast_to(index[:, None, None], (count, 2, 2)).astype(np.float32)
    return Arrays({"x": index.astype(np.int32), "image": image})


def stream(
    source: object, batch_size: int, rows: slice | None = None, *, seed: int = 0, prefetch: int = 4
) -> TrainIterator:
    rows = slice(0, batch_size) if rows is None else rows
    return train_batches(source, batch_size=batch_size, seed=seed, rows=rows, prefetch=prefetch, workers=0)  # type: ignore[arg-type]


def first(batches: TrainIterator, count: int) -> np.ndarray:
    found = np.stack([next(batches)["x"].copy() for _ in range(count)])
    batches.close()
    return found


def test_a_batch() -> None:
    batches = stream(together(10), 4)
    batch = next(batches)
    batches.close()
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        "x": ((4,), "int32"),
        "image": ((4, 2, 2), "float32"),
        "mask": ((4,), "bool"),
    }
    assert batch["mask"].all()
    np.testing.assert_array_equal(batch["image"][:, 0, 0], batch["x"])


@settings(max_examples=30)
@given(examples=st.integers(1, 40), data=st.data(), seed=st.integers(0, 5))
def test_every_epoch_has_every_example_once_and_batches_run_on(examples: int, data: st.DataObject, seed: int) -> None:
    batch_size = data.draw(st.integers(1, examples))
    found = first(stream(together(examples), batch_size, seed=seed), 3 * examples).ravel()
    for epoch in found[: len(found) // examples * examples].reshape(-1, examples):
        assert sorted(epoch.tolist()) == list(range(examples))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("make", [together, Singly])
def test_processes_read_parts_of_one_order(processes: int, make: type) -> None:
    whole = first(stream(together(23), 8), 20)
    size = 8 // processes
    parts = [first(stream(make(23), 8, slice(p * size, (p + 1) * size)), 20) for p in range(processes)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("make", [together, Singly])
def test_restoring_at_every_position_gives_the_same_rest(make: type) -> None:
    batches = stream(make(11), 4)
    seen: list[HostBatch] = []
    states = [json.loads(json.dumps(batches.state()))]
    for _ in range(70):  # more than one block
        seen.append({name: values.copy() for name, values in next(batches).items()})
        states.append(json.loads(json.dumps(batches.state())))
    assert max(len(json.dumps(state)) for state in states) < 4096
    for position, state in enumerate(states):
        if position % 7 and position < 60:
            continue
        batches.restore(state)
        for expected in seen[position:]:
            found = next(batches)
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)
    batches.close()


def test_restoring_a_far_position_is_immediate() -> None:
    batches = stream(together(1000), 10)
    batches.restore({**batches.state(), "next_batch": 10**12})
    next(batches)  # reading up to there would take days
    assert batches.state()["next_batch"] == 10**12 + 1
    batches.close()


def test_the_state_is_that_of_the_batches_handed_out_whatever_is_read_ahead() -> None:
    batches = stream(Singly(50), 5, prefetch=30)
    next(batches)
    time.sleep(0.1)
    state = batches.state()
    rest = np.stack([next(batches)["x"] for _ in range(5)])
    batches.close()
    other = stream(together(50), 5, prefetch=1)
    other.restore(state)
    np.testing.assert_array_equal(first(other, 5), rest)


@pytest.mark.parametrize(
    ("change", "named"), [("seed", "seed"), ("batch_size", "batch_size"), ("examples", "examples")]
)
def test_a_state_of_another_order_is_refused(change: str, named: str) -> None:
    batches = stream(together(10), 2)
    state = batches.state()
    with pytest.raises(DataError, match=f"{named} was {state[change] + 1}, is {state[change]}"):
        batches.restore({**state, change: state[change] + 1})


def test_a_split_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match="3 examples, fewer than one batch of 4"):
        stream(together(3), 4)


class Broken(Singly):
    """Fails at one example, the first time."""

    failed = False

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == 3 and not self.failed:
            self.failed = True
            raise ValueError("bad sector")
        return super().__getitem__(index)


def test_a_failing_source_is_a_data_error_and_can_be_tried_again() -> None:
    whole = first(stream(together(10), 2), 5)
    batches = stream(Broken(10), 2)
    found: list[np.ndarray] = []
    with pytest.raises(DataError, match=r"ValueError: bad sector \(.*test_pipeline.py:\d+\)") as caught:
        found.extend(batch["x"] for batch in itertools.islice(batches, 5))
    assert isinstance(caught.value.__cause__, ValueError)
    while len(found) < 5:
        found.append(next(batches)["x"])
    batches.close()
    np.testing.assert_array_equal(np.stack(found), whole)


def test_an_element_named_mask_is_refused() -> None:
    with pytest.raises(DataError, match="an array named 'mask'"):
        next(stream(Arrays({"mask": np.zeros(4)}), 2))


@settings(max_examples=30)
@given(examples=st.integers(1, 50), batch_size=st.sampled_from([4, 8, 12]), processes=st.sampled_from([1, 2, 4]))
def test_evaluation_has_every_example_once_in_order(examples: int, batch_size: int, processes: int) -> None:
    size = batch_size // processes
    parts = [
        list(evaluation_batches(together(examples), batch_size=batch_size, rows=slice(p * size, (p + 1) * size)))
        for p in range(processes)
    ]
    assert {len(part) for part in parts} == {-(-examples // batch_size)}
    batches = [{k: np.concatenate([b[k] for b in rows]) for k in rows[0]} for rows in zip(*parts, strict=True)]
    assert [x for b in batches for x in b["x"][b["mask"]]] == list(range(examples))
    for b in batches:
        assert not b["image"][~b["mask"]].any()
        assert len(b["mask"]) == batch_size


def test_evaluating_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        next(evaluation_batches(together(0), batch_size=2, rows=slice(0, 2)))


def test_abandoned_evaluation_stops_its_thread() -> None:
    before = threading.active_count()
    batches = evaluation_batches(together(1000), batch_size=2, rows=slice(0, 2))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    for _ in range(600):
        if threading.active_count() <= before:
            return
        time.sleep(0.05)
    pytest.fail("the thread goes on")


def test_small_batches_cost_less_than_a_third_of_a_millisecond() -> None:
    rows = np.zeros((5000, 64), np.int32)
    batches = stream(Arrays({"inputs": rows, "targets": rows}), 12)
    next(batches)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(64):
            next(batches)
        times.append((time.perf_counter() - began) / 64)
    batches.close()
    assert np.median(times) < 0.3e-3
