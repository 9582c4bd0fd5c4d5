"""The conformance kit of tokenizers, and texts that a tokenizer is least likely to expect."""

import dataclasses
import functools
import json
import tempfile
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np

from assay import registry
from assay.data import cache
from assay.data.spec import Encoder
from assay.data.tokens import encode_batch
from assay.errors import AssayError, DataError
from assay.kinds import Tokenizer
from assay.testing.dataset import by_value, in_new_process, new
from assay.testing.kit import Kit, check, skip

DRAWN = 240  # texts
LONGEST = 40  # characters of a drawn text
FIXED = (
    "",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t x\n\n  y \n",
    "\x00",
    "a\x00b",
    "".join(map(chr, range(128))),
    "\x7f\x80\x85\x9f\xa0\xad",
    "line\x0bline\x0cline\x1cline\u2028line\u2029",
    "\ufeffbyte order mark",
    "re\u0301sume\u0301 and r\u00e9sum\u00e9",
    "a" + "\u0300\u0301\u0302\u0316" * 5,
    "\u0301 begins with a combining mark",
    "\u00c5 \u212b A\u030a \ufb01 \u2460 \uff21",
    "\u1112\u1161\u11ab \ud55c",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 abc \u202e123\u202c",
    "\U0001f469\u200d\U0001f469\u200d\U0001f466 \U0001f44b\U0001f3fd \U0001f1eb\U0001f1f7 1\ufe0f\u20e3",
    "\u6f22\u5b57\u3068\u304b\u306a \U00020000\U0002a6d6",
    "\ue000\uf8ff\ufdd0\ufffe\uffff\ufffd\U000e0001\U0010ffff",
    "don't I'll we've DON'T x''s",
    "def f(x):\n    return x  # 1234567890 3.14e-10\n",
    "\u2581 \u0120a \u010a <0x0A> ##",
    "z" * 300 + " " * 50,
)
"""Texts in which tokenizers have been seen to fail: white space, controls, combining marks, joined emoji, both directions."""
RANGES = (
    (0x20, 0x7E),
    (0x00, 0x1F),
    (0x80, 0x9F),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0x2000, 0x206F),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xFFFF),
    (0x1F300, 0x1FAFF),
    *((plane << 16, (plane << 16) + 0xFFFF) for plane in range(1, 17)),
)
"""First and last code point of what texts are drawn from, all planes among them. Surrogates have no UTF-8 form."""


class TokenizerKit(Kit):
    """Checks of a tokenizer plugin. It is fitted to the very texts that the checks encode.

    alphabet: the characters that it is for, where not all; then no others are in the texts.
    variants(): the same recipe with other settings; by default one for each setting that is a number, a switch or a choice.
    """

    kind = "tokenizer"
    alphabet: ClassVar[str | None] = None

    def plugin(self) -> Tokenizer:
        """The tokenizer to check, with a small vocabulary."""
        return super().plugin()

    def texts(self) -> Sequence[str]:
        """What is encoded: some hundred texts."""
        return _texts(self.alphabet)

    def variants(self) -> Sequence[Tokenizer]:
        """Recipes that differ from `plugin()` in one setting each."""
        plugin = self._new()
        return list(_variants(plugin)) if dataclasses.is_dataclass(plugin) else []

    @check
    def test_text_comes_back(self) -> None:
        """decode(encode(text)) is the text, in all of Unicode."""
        encoder = self._encoder()
        for text in self.texts():
            back = encoder.decode(encoder.encode(text))
            assert back == text, f"{_short(text)} comes back as {_short(back)}"

    @check
    def test_ids_are_in_the_vocabulary(self) -> None:
        """Ids are int32 of shape (tokens,), in [0, vocab_size), and never the separator."""
        encoder = self._encoder()
        assert isinstance(encoder, Encoder), "the encoder lacks a part of the Protocol assay.data.spec.Encoder"
        for text in self.texts():
            ids, of = encoder.encode(text), f"the ids of {_short(text)}"
            assert isinstance(ids, np.ndarray), f"{of} are of type {type(ids).__name__}; return a numpy array"
            assert ids.dtype == np.int32, f"{of} have dtype {ids.dtype}; return int32"
            assert ids.ndim == 1, f"{of} have shape {ids.shape}; return (tokens,)"
            least, largest = int(ids.min(initial=0)), int(ids.max(initial=0))
            assert least >= 0, f"{of} go down to {least}"
            assert largest < encoder.vocab_size, f"{of} go up to {largest}; vocab_size is {encoder.vocab_size}"
            assert encoder.separator_id not in ids.tolist(), f"{of} contain the separator {encoder.separator_id}"

    @check
    def test_the_separator_decodes_to_nothing(self) -> None:
        """The separator is in the vocabulary, and between ids it leaves the text as it is."""
        encoder = self._encoder()
        separator = encoder.separator_id
        if separator is None:
            skip("it has no separator")
        assert 0 <= separator < encoder.vocab_size, f"separator_id {separator} is not below {encoder.vocab_size}"
        for text in self.texts():
            ids = np.asarray([separator, *encoder.encode(text), separator], np.int32)
            back = encoder.decode(ids)
            assert back == text, f"between separators {_short(text)} comes back as {_short(back)}"

    @check
    def test_text_that_cannot_be_encoded_is_refused(self) -> None:
        """Fitted to other text, it encodes a character exactly or raises DataError; a lone surrogate likewise."""
        texts = [text for text in self.texts() if text]
        fitted = self._new().fit(texts[:1])
        for text in [*texts[1:], "\ud800", "a\udfff"]:
            try:
                back = fitted.decode(fitted.encode(text))
            except DataError:
                continue
            except Exception as error:
                raise AssertionError(f"{_short(text)} raises {error!r}; raise DataError") from error
            assert back == text, f"{_short(text)} silently becomes {_short(back)}; raise DataError"

    @check
    def test_a_batch_equals_single_texts(self) -> None:
        """`encode_batch` gives what one `encode` for each text gives."""
        encoder, texts = self._encoder(), self.texts()
        if not hasattr(encoder, "encode_batch"):
            skip("the encoder has no encode_batch")
        for chosen in (texts, texts[::-1], texts[:1], texts[:0]):
            found = encode_batch(encoder, chosen)
            assert len(found) == len(chosen), f"{len(chosen)} texts give {len(found)} results"
            for text, ids in zip(chosen, found, strict=True):
                _same(ids, encoder.encode(text), f"in a batch the ids of {_short(text)} are others")

    @check
    def test_saving_restores_the_encoder(self) -> None:
        """What `save` wrote, another instance of the recipe restores: the same ids, vocabulary and fingerprint."""
        encoder = self._encoder()
        with tempfile.TemporaryDirectory() as folder:
            self._new().save(encoder, Path(folder))
            self._equal(self._new().restore(Path(folder)), encoder, "the restored encoder")

    @check
    def test_an_encoder_can_be_sent(self) -> None:
        """An encoder can be pickled, and its copy encodes alike."""
        encoder = self._encoder()
        with by_value(self):
            try:
                copy = cloudpickle.loads(cloudpickle.dumps(encoder))
            except Exception as error:
                raise AssertionError(f"the encoder cannot be pickled: {error!r}") from error
        self._equal(copy, encoder, "a copy of the encoder")

    @check
    def test_fitting_is_repeatable(self) -> None:
        """The same texts give the same encoder, from a list and from an iterator that can be read once."""
        encoder = self._encoder()
        self._equal(self._new().fit(list(self.texts())), encoder, "fitted again, the encoder")
        self._equal(self._new().fit(iter(self.texts())), encoder, "fitted to an iterator, the encoder")

    @check
    def test_another_process_fits_the_same(self) -> None:
        """Identity and encoder are the same in a new process, where strings hash otherwise."""
        found = functools.partial(_found, texts=tuple(self.texts()))
        here, there = json.loads(found(self._new())), json.loads(in_new_process(self, found, self._new()))
        differing = [name for name in here if here[name] != there[name]]
        assert not differing, (
            f"another process finds another {', '.join(differing)}; the order of a set and hash() differ between processes"
        )

    @check
    def test_the_identity_follows_the_settings(self) -> None:
        """Equal settings have one identity, other settings another."""
        identity, variants = self._new().identity(), self.variants()
        assert isinstance(identity, str), f"identity() is {identity!r}; return a string"
        assert identity == self._new().identity(), "two instances with the same settings have different identities"
        if not variants:
            skip("there is no setting that the kit could change: a method variants() that returns other recipes")
        for variant in variants:
            assert variant.identity() != identity, f"{variant!r} has the same identity, {identity!r}"

    @check
    def test_the_fingerprint_follows_the_encoding(self) -> None:
        """Encoders that encode differently have different fingerprints."""
        texts = [text for text in self.texts() if text]
        whole, part = self._encoder(), self._new().fit(texts[:2])
        try:
            alike = whole.vocab_size == part.vocab_size
            alike = alike and all(np.array_equal(whole.encode(text), part.encode(text)) for text in texts)
        except DataError:
            alike = False
        if alike:
            skip("it encodes alike whatever it is fitted to")
        assert whole.fingerprint != part.fingerprint, "fitted to other text it encodes otherwise, with one fingerprint"

    @check
    def test_token_bytes_add_up(self) -> None:
        """`token_bytes` of a text's ids add up to its length in UTF-8; the separator has none."""
        encoder = self._encoder()
        try:
            sizes = encoder.token_bytes()
        except DataError as error:
            skip(f"the encoder cannot tell: {error}")
        assert sizes.shape == (encoder.vocab_size,), f"shape {sizes.shape}; vocab_size is {encoder.vocab_size}"
        assert sizes.dtype == np.int32, f"dtype {sizes.dtype}; return int32"
        if encoder.separator_id is not None:
            assert not sizes[encoder.separator_id], "the separator has bytes"
        for text in self.texts():
            total, length = int(sizes[encoder.encode(text)].sum()), len(text.encode())
            assert total == length, f"the tokens of {_short(text)} have {total} bytes, the text {length}"

    def _new(self) -> Tokenizer:
        plugin = self.plugin()
        assert isinstance(plugin, Tokenizer), "it has not all of fit(texts), identity(), restore(…) and save(…)"
        return new(plugin)

    def _encoder(self) -> Encoder:
        return self._new().fit(self.texts())

    def _equal(self, one: Encoder, two: Encoder, what: str) -> None:
        for name in ("vocab_size", "separator_id", "fingerprint"):
            found, expected = getattr(one, name), getattr(two, name)
            assert found == expected, f"{what} has {name} {found!r}, not {expected!r}"
        for text in self.texts():
            _same(one.encode(text), two.encode(text), f"{what} gives other ids for {_short(text)}")


@functools.lru_cache(maxsize=8)
def _texts(alphabet: str | None) -> tuple[str, ...]:
    """The fixed texts and drawn ones, the same in every process; of `alphabet` alone where it is given."""
    generator = np.random.default_rng(0)
    if alphabet is None:
        return (*FIXED, *(_drawn(generator) for _ in range(DRAWN)))
    kept = ("".join(c for c in text if c in alphabet) for text in FIXED)
    drawn = ("".join(generator.choice(list(alphabet), generator.integers(1, LONGEST))) for _ in range(DRAWN))
    return tuple(dict.fromkeys((*kept, *drawn)))


def _drawn(generator: np.random.Generator) -> str:
    """Characters of a few of the ranges."""
    ranges = generator.choice(np.asarray(RANGES), generator.integers(1, 5))
    chosen = ranges[generator.integers(0, len(ranges), generator.integers(1, LONGEST))]
    points = generator.integers(chosen[:, 0], chosen[:, 1], endpoint=True)
    return "".join(map(chr, points.tolist()))


def _variants(plugin: Any) -> Iterator[Tokenizer]:
    """`plugin` with one setting changed, for each whose other values are known and allowed."""
    for name, parameter in registry.parameters(type(plugin)).items():
        for value in _other_values(getattr(plugin, name), parameter.annotation):
            try:
                yield dataclasses.replace(plugin, **{name: value})
            except (AssayError, ValueError):
                continue


def _other_values(value: Any, annotation: Any) -> Sequence[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return [choice for choice in typing.get_args(annotation) if choice != value]
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if isinstance(value, int | float) else []


def _found(plugin: Tokenizer, texts: Sequence[str]) -> str:
    """What must be the same in all processes, as JSON: name -> value."""
    encoder = plugin.fit(iter(texts))
    ids = cache.digest(*(np.asarray(encoder.encode(text), np.int64).tobytes() for text in texts))
    return json.dumps({"identity": plugin.identity(), "fingerprint": encoder.fingerprint, "encoding": ids})


def _same(one: np.ndarray, two: np.ndarray, what: str) -> None:
    assert np.asarray(one).dtype == np.asarray(two).dtype, f"{what}: dtype {np.asarray(one).dtype}"
    assert np.array_equal(one, two), f"{what}: {np.asarray(one)[:8].tolist()} for {np.asarray(two)[:8].tolist()}"


def _short(text: str) -> str:
    """The text as ASCII, for messages."""
    return ascii(text) if len(text) <= LONGEST else f"{text[:LONGEST]!a}…"
