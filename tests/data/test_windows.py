"""Windows: every offset in training, every token predicted exactly once in evaluation."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.data.blocks import read
from assay.data.tokens import Tokens
from assay.data.windows import IGNORED, Windows

MakeTokens = Callable[[np.ndarray], Tokens]


@pytest.fixture
def make_tokens(tmp_path: Path) -> MakeTokens:
    def make(ids: np.ndarray) -> Tokens:
        ids.astype("uint16").tofile(tmp_path / "ids.bin")
        np.asarray([0, len(ids)], np.int64).tofile(tmp_path / "starts.bin")
        return Tokens(tmp_path, "uint16", separated=False)

    return make


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 60), context=st.integers(1, 20), stride=st.integers(1, 25))
def test_training_windows(make_tokens: MakeTokens, count: int, context: int, stride: int) -> None:
    ids = np.arange(100, 100 + count)
    source = Windows(make_tokens(ids), context, stride, ragged=False)
    starts = [s for s in range(0, count, stride) if s + context + 1 <= count]
    assert len(source) == len(starts)
    if starts:
        found = source.gather(np.arange(len(source)))
        np.testing.assert_array_equal(found["inputs"], [ids[s : s + context] for s in starts])
        np.testing.assert_array_equal(found["targets"], [ids[s + 1 : s + context + 1] for s in starts])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 60), context=st.integers(1, 70))
def test_evaluation_windows_predict_every_token_but_the_first_once(
    make_tokens: MakeTokens, count: int, context: int
) -> None:
    ids = np.arange(100, 100 + count)
    source = Windows(make_tokens(ids), context, context, ragged=True)
    if count < 2:
        assert len(source) == 0
        return
    found = source.gather(np.arange(len(source)))
    real = found["targets"] != IGNORED
    np.testing.assert_array_equal(found["targets"][real], ids[1:])
    np.testing.assert_array_equal(found["inputs"][real], ids[:-1])
    assert not found["inputs"][~real].any()
    assert real[:-1].all()


def test_single_and_gathered_examples_agree_and_travel(make_tokens: MakeTokens) -> None:
    for ragged, stride in ((False, 1), (True, 5)):
        source = Windows(make_tokens(np.arange(23)), 5, stride, ragged)
        source.gather(np.asarray([0]))  # maps the file
        copy = pickle.loads(pickle.dumps(source))
        assert len(pickle.dumps(source)) < 1000
        indices = np.arange(len(source))
        for name, values in read(copy, indices).items():
            assert values.dtype == np.int32
            np.testing.assert_array_equal(values, np.stack([source[int(i)][name] for i in indices]))
        with pytest.raises(IndexError):
            source[len(source)]


def test_large_vocabularies_keep_their_ids(tmp_path: Path) -> None:
    ids = np.asarray([0, 70_000, 2**31 - 1], np.uint32)
    ids.tofile(tmp_path / "ids.bin")
    found = Windows(Tokens(tmp_path, "uint32", separated=False), 2, 1, ragged=False)[0]
    assert found["targets"].tolist() == [70_000, 2**31 - 1]
