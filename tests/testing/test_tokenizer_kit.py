"""The conformance kit of tokenizers: the shipped ones pass it, and each check catches the tokenizer that it is for."""

import dataclasses
import json
import threading
import unicodedata
import unittest
import uuid
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from assay import registry
from assay.data import cache
from assay.errors import DataError
from assay.testing.kit import run
from assay.testing.tokenizer import TokenizerKit
from assay_plugins.tokenizers.bpe import BPE
from assay_plugins.tokenizers.byte import Bytes
from assay_plugins.tokenizers.char import Char
from assay_plugins.tokenizers.hf import HFTokenizer

END = "<|end of document|>"


def file_of(folder):
    encoder = BPE(vocab_size=300).fit(["one plate of gold, two of silver"] * 5)
    encoder.tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    return HFTokenizer(path=str(folder), separator=END)


SHIPPED = {
    "bytes": (lambda folder: Bytes(), lambda one: []),
    "char": (lambda folder: Char(extra="é"), lambda one: [Char(), Char(extra="è")]),
    "bpe": (
        lambda folder: BPE(vocab_size=400),
        lambda one: [BPE(vocab_size=401), BPE(vocab_size=400, min_frequency=3)],
    ),
    "hf": (file_of, lambda one: [dataclasses.replace(one, separator=None)]),
}
SKIPPED = {
    "bytes": {
        "a_batch_equals_single_texts",
        "the_identity_follows_the_settings",
        "the_fingerprint_follows_the_encoding",
    },
    "char": {"the_separator_decodes_to_nothing", "a_batch_equals_single_texts"},
    "bpe": set(),
    "hf": {"the_fingerprint_follows_the_encoding"},
}


def kit_of(plugin, **hooks):
    return type("Found", (TokenizerKit,), {"plugin": lambda self: plugin, **hooks})()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_tokenizers_pass(name, tmp_path):
    make, variants = SHIPPED[name]
    plugin = make(tmp_path)
    results = list(run(kit_of(plugin, variants=lambda self: variants(plugin))))
    assert [f"{r.name}: {r.detail}" for r in results if r.status == "failed"] == []
    assert {r.name.removeprefix("test_") for r in results if r.status == "skipped"} == SKIPPED[name]


def test_every_shipped_tokenizer_is_checked():
    assert {e.name for e in registry.entries("tokenizer") if e.distribution == "assay"} == set(SHIPPED)


@pytest.mark.parametrize("name", ["bytes", "bpe", "hf"])
def test_any_text_comes_back(name, tmp_path_factory):
    encoder = SHIPPED[name][0](tmp_path_factory.mktemp("file")).fit(["some text"])

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def comes_back(text):
        assert encoder.decode(encoder.encode(text)) == text

    comes_back()


def test_the_texts_cover_unicode():
    texts = kit_of(Bytes()).texts()
    assert len(texts) > 200
    assert texts == kit_of(Bytes()).texts()
    characters = set("".join(texts))
    assert {ord(c) >> 16 for c in characters} == set(range(17))
    assert {"Mn", "Cc", "Cf", "Zs", "Zl", "Zp", "So", "Sk", "Nd", "Co", "Cn"} <= {
        unicodedata.category(c) for c in characters
    }
    assert {"R", "AL", "RLO"} <= {unicodedata.bidirectional(c) for c in characters}
    assert {"", " ", "\n", "\x00", "\r\n"} <= set(texts)
    assert [text.encode().decode() for text in texts] == list(texts)


def test_an_alphabet_restricts_the_texts():
    texts = kit_of(Bytes(), alphabet="abc ").texts()
    assert set("".join(texts)) == set("abc ")
    assert len(texts) > 200
    assert "" in texts


class Encoding:
    """Characters as ids from 1 on, 0 separates, and a place for one mistake."""

    def __init__(self, characters, flaw):
        self.characters, self.flaw = characters, flaw
        self.separator_id = len(characters) + 1 if flaw == "separator out" else 0
        self.vocab_size = len(characters) + (flaw != "vocabulary")
        self.places = {c: i for i, c in enumerate(characters, start=1)}
        self.lock = threading.Lock() if flaw == "lock" else None

    @property
    def fingerprint(self):
        if self.flaw == "fingerprint, random":
            return uuid.uuid4().hex
        return "characters" if self.flaw == "fingerprint, constant" else cache.digest(*self.characters)

    def encode(self, text):
        if self.flaw == "strip":
            text = text.strip(" ")
        unknown = [c for c in text if c not in self.places]
        if unknown and self.flaw == "key error":
            raise KeyError(unknown[0])
        if unknown and self.flaw != "unknown dropped":
            raise DataError(f"{unknown[0]!r} is not known")
        ids = [self.places[c] for c in text if c in self.places]
        if self.flaw == "separator within" and "\n" in text:
            ids = [0, *ids]
        if self.flaw == "dtype":
            return np.asarray(ids)
        if self.flaw == "list":
            return ids
        return np.asarray(ids, np.int32)

    def encode_batch(self, texts):
        if self.flaw == "batch":
            texts = sorted(texts)
        if self.flaw == "batch, short":
            texts = [text for text in texts if text]
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        if self.flaw == "separator shown":
            return "".join(self.characters[i - 1] if i else "|" for i in ids)
        return "".join(self.characters[i - 1] for i in ids if i)

    def token_bytes(self):
        if self.flaw == "bytes":
            return np.asarray([0, *(1 for _ in self.characters)], np.int32)
        if self.flaw == "bytes of the separator":
            return np.asarray([1, *(len(c.encode()) for c in self.characters)], np.int32)
        if self.flaw == "bytes, refused":
            raise DataError("not known")
        return np.asarray([0, *(len(c.encode()) for c in self.characters)], np.int32)[: self.vocab_size]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Characters:
    flaw: str = ""
    order: Literal["up", "down"] = "up"
    shift: int = 0

    def fit(self, texts):
        if self.flaw == "twice":
            assert sum(1 for _ in texts)
        found = {c for text in texts for c in text}
        if self.flaw == "drawn":
            found.add(chr(0xF0000 + uuid.uuid4().int % 60000))
        order = list(found) if self.flaw == "set" else sorted(found, reverse=self.order == "down")
        return Encoding(order, self.flaw)

    def identity(self):
        if self.flaw == "identity":
            return f"characters {self.order}"
        if self.flaw == "identity, id":
            return f"characters {self.order} {self.shift} {id(object())} {uuid.uuid4()}"
        return f"characters {self.order} {self.shift} {hash('x') if self.flaw == 'identity, hash' else ''}"

    def save(self, encoder, directory):
        kept = encoder.characters[: 100 if self.flaw == "saved in part" else None]
        (directory / "characters.json").write_text(json.dumps(kept))

    def restore(self, directory):
        return Encoding(json.loads((directory / "characters.json").read_text()), self.flaw)


class OnCharacters(TokenizerKit):
    flaw = ""

    def plugin(self):
        return Characters(flaw=self.flaw)


PROCESS = "test_another_process_fits_the_same"
HERE = [name for name in OnCharacters.checks() if name != PROCESS]
BACK, IDS = "test_text_comes_back", "test_ids_are_in_the_vocabulary"
SEPARATOR, REFUSED = "test_the_separator_decodes_to_nothing", "test_text_that_cannot_be_encoded_is_refused"
SAVED, SENT, FITTED = "test_saving_restores_the_encoder", "test_an_encoder_can_be_sent", "test_fitting_is_repeatable"
IDENTITY, BYTES = "test_the_identity_follows_the_settings", "test_token_bytes_add_up"
MUTATIONS = {  # the check that a flaw is for, then those that fail as well
    "strip": [BACK, SEPARATOR, REFUSED, BYTES],
    "dtype": [IDS, BYTES],
    "list": [IDS],
    "vocabulary": [IDS, BYTES],
    "separator within": [IDS],
    "separator shown": [SEPARATOR],
    "separator out": [SEPARATOR, BYTES],
    "unknown dropped": [REFUSED],
    "key error": [REFUSED],
    "batch": ["test_a_batch_equals_single_texts"],
    "batch, short": ["test_a_batch_equals_single_texts"],
    "saved in part": [SAVED],
    "lock": [SENT],
    "drawn": [FITTED],
    "twice": [FITTED],
    "identity": [IDENTITY],
    "identity, id": [IDENTITY],
    "fingerprint, constant": ["test_the_fingerprint_follows_the_encoding"],
    "fingerprint, random": [SAVED, SENT, FITTED],
    "bytes": [BYTES],
    "bytes of the separator": [BYTES],
}


def failures(flaw, names):
    kit = type("Broken", (OnCharacters,), {"flaw": flaw})()
    found = {}
    for name in names:
        try:
            getattr(kit, name)()
        except unittest.SkipTest:
            continue
        except Exception as error:
            found[name] = str(error)
    return found


def test_the_right_tokenizer_passes():
    assert failures("", HERE) == {}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw):
    assert failures(flaw, HERE).keys() == set(MUTATIONS[flaw])


@pytest.mark.slow
@pytest.mark.parametrize(("flaw", "message"), [("set", "fingerprint, encoding"), ("identity, hash", "identity")])
def test_a_flaw_that_shows_in_another_process_is_caught(flaw, message):
    kit = type("Broken", (OnCharacters,), {"flaw": flaw})()
    with pytest.raises(AssertionError, match=f"another process finds another {message};"):
        getattr(kit, PROCESS)()


def test_unknown_token_bytes_are_no_failure():
    with pytest.raises(unittest.SkipTest, match="not known"):
        type("Refusing", (OnCharacters,), {"flaw": "bytes, refused"})().test_token_bytes_add_up()


def test_settings_that_are_numbers_or_choices_are_varied():
    assert OnCharacters().variants() == [Characters(order="down"), Characters(shift=1)]
    assert kit_of(Bytes()).variants() == []


@pytest.mark.slow
class TestThroughPytest(OnCharacters):
    """The door that authors use."""
