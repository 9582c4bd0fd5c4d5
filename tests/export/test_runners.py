"""Caches stay in the process that runs an artifact; each call uses up what the one before has left there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from assay.errors import ExportError
from assay_export import artifact
from assay_export.cases import empty
from assay_export.runners import Held, Process, opened
from assay_export.stablehlo.exporter import StableHLO

from .conftest import Model, made

LENGTH = 6
FORMAT = StableHLO(platforms=("cpu",), buckets=())
TOKENS = np.asarray([[5, 1, 4]], np.int32)


@pytest.fixture(scope="module")
def model() -> Model:
    return made("transformer", max_batch=1, max_length=LENGTH)


@pytest.fixture(scope="module")
def place(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runners") / "artifact"
    place.mkdir()
    artifact.fill(place, model.source, {"stablehlo": FORMAT}, {"tokenizer": None})
    return place


@pytest.fixture
def process(place: Path) -> Iterator[Process]:
    with Process(place, "stablehlo", FORMAT) as process:
        yield process


@pytest.fixture
def cache(model: Model) -> dict[str, np.ndarray]:
    return empty(model.source.program("decode").signature, {"batch": 1, "cache": LENGTH})


def step(place: int, token: int) -> dict[str, np.ndarray]:
    return {"inputs": np.asarray([[token]], np.int32), "position": np.asarray(place, np.int32)}


def test_tokens_are_decoded_with_what_stayed(place: Path, process: Process, cache: dict[str, np.ndarray]) -> None:
    here = opened(place, "stablehlo", FORMAT)
    found, expected = (run("prefill", {"inputs": TOKENS, **cache}) for run in (process, here))
    for at, token in ((3, 2), (4, 9), (5, 7)):
        assert all(isinstance(found[name], Held) for name in cache)
        process.forget()  # compiled programs, and not caches
        found = process("decode", {**step(at, token), **{name: found[name] for name in cache}})
        expected = here("decode", {**step(at, token), **{name: expected[name] for name in cache}})
        np.testing.assert_array_equal(found["output"], expected["output"])


def test_a_cache_is_used_once(process: Process, cache: dict[str, np.ndarray]) -> None:
    first = process("prefill", {"inputs": TOKENS, **cache})
    process("decode", {**step(3, 2), **{name: first[name] for name in cache}})
    with pytest.raises(AssertionError, match="another call has used up"):
        process("decode", {**step(3, 2), **{name: first[name] for name in cache}})


def test_nothing_stays_where_weights_are_read_again(process: Process, cache: dict[str, np.ndarray]) -> None:
    first = process("prefill", {"inputs": TOKENS, **cache})
    process.reload()
    with pytest.raises(ExportError, match="decode takes"):
        process("decode", {**step(3, 2), **{name: first[name] for name in cache}})
    again = process("prefill", {"inputs": TOKENS, **cache})
    np.testing.assert_array_equal(first["output"], again["output"])


def test_what_a_refused_call_would_have_used_is_gone(process: Process, cache: dict[str, np.ndarray]) -> None:
    first = process("prefill", {"inputs": TOKENS, **cache})
    held = {name: first[name] for name in cache}
    with pytest.raises(ExportError, match="must lie in"):
        process("decode", {**step(3, 1 << 20), **held})
    with pytest.raises(ExportError, match="decode takes"):
        process("decode", {**step(3, 2), **held})
