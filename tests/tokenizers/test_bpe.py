"""BPE: any text comes back exactly, however it is cut up; training is deterministic."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.spec import Encoder
from assay.errors import DataError
from assay.kinds import Tokenizer
from assay_plugins.tokenizers import encoder as encoder_module
from assay_plugins.tokenizers.bpe import BPE
from assay_plugins.tokenizers.encoder import LibraryEncoder

TEXT = (
    "the quick brown fox jumps over the lazy dog, and the dog's friend doesn't mind.\n\n\tdef jump(self):\n        return 12345  \n"
) * 20
ENCODER = BPE(vocab_size=400).fit([TEXT])
WORDS = st.lists(
    st.sampled_from(["a", "the", "jump", " ", "  ", "\n", "\t", "'s", "é", "漢", "1", "!", "\x1c", "\u2003"])
).map("".join)


@given(st.text() | WORDS)
def test_text_comes_back(text: str) -> None:
    ids = ENCODER.encode(text)
    assert ids.dtype == np.int32
    assert ENCODER.separator_id not in ids
    assert ENCODER.decode(ids) == text
    assert ENCODER.token_bytes()[ids].sum() == len(text.encode())


@given(WORDS, st.integers(0, 5))
def test_cutting_long_texts_changes_nothing(text: str, size: int) -> None:
    whole = ENCODER.tokenizer.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "CHUNK_CHARACTERS", size)
        patch.setattr(encoder_module, "GROUP", 2)
        assert ENCODER.encode(text).tolist() == whole
        if size == 0 and "a the" in text:
            assert len(ENCODER._parts(text)) > 1


@given(st.lists(st.text() | WORDS))
def test_a_batch_equals_single_texts(texts: list[str]) -> None:
    for ids, text in zip(ENCODER.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, ENCODER.encode(text))


def test_contract(tmp_path: Path) -> None:
    tokenizer = BPE(vocab_size=400)
    assert isinstance(tokenizer, Tokenizer)
    assert isinstance(ENCODER, Encoder)
    assert ENCODER.vocab_size <= 400
    assert ENCODER.separator_id == ENCODER.vocab_size - 1
    assert ENCODER.decode(np.asarray([ENCODER.separator_id, *ENCODER.encode("dog")])) == "dog"
    assert ENCODER.token_bytes()[ENCODER.separator_id] == 0
    tokenizer.save(ENCODER, tmp_path)
    for copy in (tokenizer.restore(tmp_path), pickle.loads(pickle.dumps(ENCODER))):
        assert copy.fingerprint == ENCODER.fingerprint
        assert (copy.vocab_size, copy.separator_id) == (ENCODER.vocab_size, ENCODER.separator_id)
        np.testing.assert_array_equal(copy.encode(TEXT), ENCODER.encode(TEXT))
    assert len({BPE(vocab_size=v, min_frequency=f).identity() for v in (300, 400) for f in (1, 2)}) == 4


def test_it_compresses_and_reaches_the_vocabulary(data_dir: Path) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text()
    encoder = BPE(vocab_size=1024).fit([text])
    assert encoder.vocab_size == 1024
    ids = encoder.encode(text)
    assert len(text) / len(ids) > 2
    assert encoder.decode(ids) == text


def test_training_is_deterministic_across_processes() -> None:
    code = f"from assay_plugins.tokenizers.bpe import BPE; print(BPE(vocab_size=400).fit([{TEXT!r}]).fingerprint)"
    quiet = "ignore:This process:DeprecationWarning"  # Python 3.12 warns of every fork beside threads
    found = subprocess.run([sys.executable, "-W", quiet, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ENCODER.fingerprint
    assert found.stderr == ""


def test_a_forked_child_can_encode_and_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    ENCODER.encode_batch([TEXT] * 8)
    code = (
        "import os; from tests_bpe import encoder\n"
        "encoder.encode_batch(['some text'] * 50)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    encoder.encode_batch(['some text'] * 50); os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1])"
    ).replace(
        "from tests_bpe import encoder",
        f"from assay_plugins.tokenizers.bpe import BPE; encoder = BPE(vocab_size=300).fit([{TEXT!r}])",
    )
    quiet = "ignore:This process:DeprecationWarning"  # Python 3.12 warns of every fork beside threads
    found = subprocess.run(
        [sys.executable, "-W", quiet, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "0"
    assert found.stderr == ""
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 257"):
        BPE(vocab_size=256)
    with pytest.raises(ValueError, match="min_frequency"):
        BPE(vocab_size=300, min_frequency=0)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match="lone surrogates"):
        ENCODER.encode("a\ud800")


def test_an_untrained_vocabulary_is_bytes_and_the_separator() -> None:
    encoder: LibraryEncoder = BPE(vocab_size=400).fit([])
    assert encoder.vocab_size == 257
    assert encoder.decode(encoder.encode("é")) == "é"
