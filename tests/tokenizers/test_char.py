"""Characters: the training text's alphabet, and nothing else."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.spec import Encoder
from assay.errors import DataError
from assay.kinds import Tokenizer
from assay_plugins.tokenizers.char import Char


@given(st.lists(st.text(), min_size=1).filter(any))
def test_text_comes_back(texts: list[str]) -> None:
    encoder = Char().fit(texts)
    assert encoder.vocab_size == len(set("".join(texts)))
    for text in texts:
        ids = encoder.encode(text)
        assert ids.dtype == np.int32
        assert encoder.decode(ids) == text
        assert encoder.token_bytes()[ids].sum() == len(text.encode())


def test_contract(tmp_path: Path) -> None:
    assert isinstance(Char(), Tokenizer)
    encoder = Char(extra="zé").fit(["hello"])
    assert isinstance(encoder, Encoder)
    assert encoder.alphabet == "ehlozé"
    assert encoder.separator_id is None
    Char().save(encoder, tmp_path)
    for copy in (Char().restore(tmp_path), pickle.loads(pickle.dumps(encoder))):
        assert copy == encoder
        assert copy.fingerprint == encoder.fingerprint
    assert Char().fit(["help"]).fingerprint != encoder.fingerprint
    assert Char(extra="a").identity() != Char().identity()


@pytest.mark.parametrize(
    ("text", "named"), [("hex", r"'x' \(U\+0078\), 2 char"), ("\u0000", r"U\+0000"), ("\U0010ffff", "10FFFF")]
)
def test_an_unknown_character_is_named(text: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        Char().fit(["hello"]).encode(text)


def test_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="no characters"):
        Char().fit([])


def test_tiny_shakespeare_has_65_characters(data_dir: Path) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text()
    encoder = Char().fit([text])
    assert encoder.vocab_size == 65
    assert encoder.decode(encoder.encode(text)) == text
