"""Text datasets end to end: fitted on training text only, tokenised once into the cache, and refused with a reason."""

import dataclasses
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from assay.data import cache, progress
from assay.data.corpus import Corpus
from assay.data.text import TextDataset
from assay.data.tokens import GROUP_CHARACTERS, fitted, tokenised
from assay.data.windows import IGNORED
from assay.errors import DataError
from assay.kinds import Dataset, Tokenizer
from assay_plugins.tokenizers.byte import ByteEncoder, Bytes
from assay_plugins.tokenizers.char import Char


@dataclasses.dataclass(frozen=True)
class Given:
    """Documents in memory."""

    texts: Mapping[str, Sequence[str]]
    reads: list[str] = dataclasses.field(default_factory=list)

    @property
    def splits(self) -> Sequence[str]:
        return list(self.texts)

    def documents(self, split: str) -> Iterator[str]:
        self.reads.append(split)
        return iter(self.texts[split])

    def fingerprint(self) -> str:
        return cache.digest(repr(self.texts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InMemory(TextDataset):
    given: Given

    def corpus(self) -> Corpus:
        return self.given


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE_DIR", str(tmp_path / "cache"))


TEXTS = Given({"train": ["one two three", "four five", "six é"], "validation": ["seven", "eight"]})


def dataset(tokenizer: Tokenizer | None = None, context: int = 4, **options: object) -> InMemory:
    return InMemory(given=TEXTS, tokenizer=tokenizer or Bytes(), context=context, **options)  # type: ignore[arg-type]


def test_stream_of_documents_with_separators() -> None:
    data = dataset()
    assert isinstance(data, Dataset)
    encoder = data.spec().encoder
    assert encoder is not None
    stream = data.source("train").tokens.stream  # type: ignore[attr-defined]
    assert stream.tobytes().decode("utf-16-le").encode("latin-1") == b"one two three\xfffour five\xffsix \xc3\xa9"
    assert encoder.decode(stream) == "one two threefour fivesix é"


@pytest.mark.parametrize(
    ("packing", "tokenizer", "expected"),
    [
        ("stream", Bytes(), len("seven eight") - 1),  # the separator is predicted, the first byte is not
        ("documents", Bytes(), len("seven") + len("eight") + 2),  # every byte, and every end
        ("documents", Char(extra="ghtv"), len("seven") + len("eight") - 2),  # all but each document's first character
    ],
)
def test_evaluation_predicts_every_token_once(packing: str, tokenizer: Tokenizer, expected: int) -> None:
    source = dataset(tokenizer, packing=packing).source("validation")
    targets = np.concatenate([source[i]["targets"] for i in range(len(source))])
    assert np.sum(targets != IGNORED) == expected


def test_spec_describes_the_examples() -> None:
    for packing in ("stream", "documents"):
        data = dataset(packing=packing)
        spec = data.spec()
        assert (spec.unit, spec.units_per_example, spec.vocab_size) == ("tokens", 4, 256)
        for split in ("train", "validation"):
            example = data.source(split)[0]
            assert {n: (v.shape, v.dtype.name) for n, v in example.items()} == {
                n: (a.shape, a.dtype) for n, a in spec.elements.items()
            }


def test_the_tokenizer_sees_training_text_only_and_says_what_it_lacks() -> None:
    corpus = Given(TEXTS.texts)
    assert fitted(Char(), corpus).vocab_size == len(set("".join(TEXTS.texts["train"])))
    assert corpus.reads == ["train"]
    with pytest.raises(
        DataError, match=r"documents 1 to 2 of split 'validation': character 'g' \(U\+0067\), 2 characters into"
    ):
        dataset(Char()).source("validation")


def test_tokenising_happens_once() -> None:
    corpus = Given(TEXTS.texts)
    encoder = fitted(Char(), corpus)
    first = tokenised(corpus, "train", encoder)
    again = Given(TEXTS.texts)
    assert tokenised(again, "train", fitted(Char(), again)) == first
    assert again.reads == []


@pytest.mark.parametrize(
    "change",
    [
        {"context": 5},
        {"packing": "documents"},
        {"stride": 2},
        {"tokenizer": Char()},
        {"given": Given({"train": ["else"]})},
    ],
)
def test_the_fingerprint_changes_with_everything(change: dict[str, object]) -> None:
    data = dataset()
    assert data.fingerprint() == dataset().fingerprint()
    assert dataclasses.replace(data, **change).fingerprint() != data.fingerprint()  # type: ignore[arg-type]


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(DataError, match=r"no split 'valid'; there are train, validation. Did you mean 'validation'\?"):
        dataset().source("valid")


def test_a_split_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="'train' has 30 tokens, too few for one example of context 30"):
        dataset(context=30).source("train")
    assert len(dataset(context=30).source("validation")) == 1  # padded


@pytest.mark.parametrize("options", [{"context": 0}, {"stride": 0}, {"stride": 2, "packing": "documents"}])
def test_impossible_shapes_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        dataset(**options)  # type: ignore[arg-type]


def test_sources_are_small_to_send() -> None:
    for packing in ("stream", "documents"):
        source = dataset(packing=packing).source("train")
        source[0]
        sent = pickle.dumps(source)
        assert len(sent) < 1000
        np.testing.assert_array_equal(pickle.loads(sent)[0]["inputs"], source[0]["inputs"])


def test_slow_tokenising_shows_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    dataset().source("train")
    assert "tokenising train: 27 characters" in capsys.readouterr().err


SCRIPT = """
import sys, time
from assay_plugins.datasets.text_files import TextFiles
from assay_plugins.tokenizers.byte import ByteEncoder, Bytes
from assay.data import tokens

tokens.GROUP_CHARACTERS = 1
encode = ByteEncoder.encode

def slow(self, text):
    print("encoding", flush=True)
    time.sleep(float(sys.argv[2]))
    return encode(self, text)

ByteEncoder.encode = slow
print(len(TextFiles(files=sys.argv[1], tokenizer=Bytes(), context=2, split_by="document").source("train")), flush=True)
"""


def test_killed_tokenising_leaves_no_half_entry(tmp_path: Path) -> None:
    files = tmp_path / "documents.jsonl"
    files.write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(20)))

    def run(seconds: float) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SCRIPT, str(files), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = run(0.3)  # a document, of which there are twenty
    assert killed.stdout is not None
    for _ in range(3):
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    entries = [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.suffix == ""]
    assert entries == []
    whole = run(0).communicate()[0].split()  # would wait for ever for a lock that is left
    assert int(whole[-1]) > 100


def test_documents_are_read_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No corpus is held in memory as a whole."""
    read: list[int] = []
    read_before_encoding: list[int] = []

    class Long(Given):
        def documents(self, split: str) -> Iterator[str]:
            for i in range(10):
                read.append(i)
                yield "x" * GROUP_CHARACTERS

    def encode(self: ByteEncoder, text: str) -> np.ndarray:
        read_before_encoding.append(len(read))
        return np.zeros(1, np.int32)

    monkeypatch.setattr(ByteEncoder, "encode", encode)
    tokenised(Long({"train": []}), "train", ByteEncoder())
    assert read_before_encoding == list(range(1, 11))
