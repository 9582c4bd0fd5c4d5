"""Packing: every pair of tokens exactly once, whole documents where they fit, little padding."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.data.blocks import read
from assay.data.packing import PackedDocuments
from assay.data.tokens import Tokens
from assay.data.windows import IGNORED

SEPARATOR = 9999


def make_tokens(root: Path, lengths: list[int], *, separated: bool) -> tuple[Tokens, list[list[int]]]:
    """Documents of unique ids in a folder of their own."""
    ends = np.cumsum(lengths)
    documents = [list(range(int(end - length), int(end))) for end, length in zip(ends, lengths, strict=True)]
    separator = [SEPARATOR] * separated
    directory = root / f"{separated}-{'-'.join(map(str, lengths))}"
    directory.mkdir(exist_ok=True)
    np.asarray([*separator, *(i for d in documents for i in [*d, *separator])], "uint16").tofile(directory / "ids.bin")
    starts = np.cumsum([len(separator), *(n + len(separator) for n in lengths)])
    starts.astype(np.int64).tofile(directory / "starts.bin")
    return Tokens(directory, "uint16", separated), documents


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASSAY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), context=st.integers(1, 16), separated=st.booleans()
)
def test_every_pair_of_every_document_once(root: Path, lengths: list[int], context: int, separated: bool) -> None:
    tokens, documents = make_tokens(root, lengths, separated=separated)
    source = PackedDocuments(tokens, context)
    wrapped = [[SEPARATOR, *d, SEPARATOR] for d in documents] if separated else documents
    expected = sorted((a, b) for d in wrapped for a, b in itertools.pairwise(d))
    if not expected:
        assert len(source) == 0
        return
    found = read(source, np.arange(len(source)))
    real = found["segment_ids"] > 0
    pairs = zip(found["inputs"][real].tolist(), found["targets"][real].tolist(), strict=True)
    assert sorted(pairs) == expected
    assert (found["targets"][~real] == IGNORED).all()
    assert not found["inputs"][~real].any()
    assert not found["positions"][~real].any()


def test_rows(root: Path) -> None:
    tokens, _ = make_tokens(root, [3, 10, 2], separated=False)
    found = read(PackedDocuments(tokens, 8), np.arange(2))
    assert found["inputs"].tolist() == [[3, 4, 5, 6, 7, 8, 9, 10], [0, 1, 11, 13, 0, 0, 0, 0]]
    assert found["targets"].tolist() == [[4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 12, 14, -1, -1, -1, -1]]
    assert found["segment_ids"].tolist() == [[1] * 8, [1, 1, 2, 3, 0, 0, 0, 0]]
    assert found["positions"].tolist() == [list(range(8)), [0, 1, 0, 0, 0, 0, 0, 0]]


def test_single_and_gathered_rows_agree_in_any_order_and_travel(root: Path) -> None:
    tokens, _ = make_tokens(root, [3, 10, 2, 7, 7, 1], separated=True)
    source = PackedDocuments(tokens, 8)
    copy = pickle.loads(pickle.dumps(source))
    indices = np.asarray([2, 0, 2, 1])
    for name, values in read(copy, indices).items():
        np.testing.assert_array_equal(values, np.stack([source[int(i)][name] for i in indices]))
    with pytest.raises(IndexError):
        source[len(source)]


def test_little_is_padding(root: Path) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 2000).astype(int) + 1
    tokens, _ = make_tokens(root, [1], separated=True)
    starts = np.cumsum([1, *(lengths + 1)])
    np.zeros(starts[-1], np.uint16).tofile(tokens.directory / "ids.bin")
    starts.astype(np.int64).tofile(tokens.directory / "starts.bin")
    source = PackedDocuments(tokens, 256)
    assert (lengths.sum() + 2000) / (len(source) * 256) > 0.998
