"""Bytes: any text comes back; the separator cannot be written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.spec import Encoder
from assay.errors import DataError
from assay.kinds import Tokenizer
from assay_plugins.tokenizers.byte import Bytes


@given(st.text())
def test_text_comes_back(text: str) -> None:
    encoder = Bytes().fit([])
    ids = encoder.encode(text)
    assert ids.dtype == np.int32
    assert encoder.separator_id not in ids
    assert encoder.decode(ids) == text
    assert encoder.token_bytes()[ids].sum() == len(text.encode())


def test_contract() -> None:
    assert isinstance(Bytes(), Tokenizer)
    encoder = Bytes().fit([])
    assert isinstance(encoder, Encoder)
    assert encoder.token_bytes().tolist() == [1] * 255 + [0]
    assert encoder.decode(np.asarray([72, 255, 105, 0xC3])) == "Hi\ufffd"


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match=r"character 1 of the text is the lone surrogate U\+D800"):
        Bytes().fit([]).encode("a\ud800")
