"""The tokenizer of a dataset as the files that the transformers library reads: tokenizer.json and tokenizer_config.json.

The ids of any text are those that the model was trained on: nothing is added at its ends, and the separator of documents, which is the
token that begins and ends a text, cannot come out of a text.
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from assay.data.spec import Encoder
from assay.errors import ExportError
from assay_plugins.tokenizers.byte import ByteEncoder
from assay_plugins.tokenizers.char import CharEncoder
from assay_plugins.tokenizers.encoder import LibraryEncoder

SEPARATOR = "<|endoftext|>"
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Files = Mapping[str, Mapping[str, Any]]


def tokenizer_files(encoder: Encoder, context: int, family: str) -> Files:
    """Name -> JSON of each file. context: tokens that the model reads at most. family: config.json's model_type.

    Raises ExportError for an encoder that has no such form, and for one that transformers would read as another.
    """
    tokenizer, separator, plain = _tokenizer(encoder)
    if family == "qwen2":
        _check_qwen2(tokenizer)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": plain,
    }
    if separator is not None:
        settings |= {"bos_token": separator, "eos_token": separator, "pad_token": separator}
    return {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": settings}


def _tokenizer(encoder: Encoder) -> tuple[Tokenizer, str | None, bool]:
    """(the library's tokenizer, its separator, whether the names of special tokens in a text are read as plain text)."""
    if isinstance(encoder, ByteEncoder):
        return _of_bytes(), SEPARATOR, True
    if isinstance(encoder, CharEncoder):
        return _of_characters(encoder.alphabet), None, True
    if isinstance(encoder, LibraryEncoder):
        return _of_library(encoder)
    raise ExportError(
        f"the tokenizer {type(encoder).__qualname__} has no form as tokenizer.json; what have one: tokenizer.bytes, tokenizer.char, "
        "tokenizer.bpe, tokenizer.hf"
    )


def _of_bytes() -> Tokenizer:
    """Byte-level BPE without merges, whose tokens are in the order of the bytes."""
    signs = {ord_of: sign for sign, ord_of in _byte_signs().items()}
    separator = ByteEncoder().separator_id
    vocabulary = {signs[byte]: byte for byte in range(256) if byte != separator}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, SEPARATOR: separator}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_special(SEPARATOR)])
    return tokenizer


def _byte_signs() -> dict[str, int]:
    """The sign that stands for each byte in byte-level vocabularies -> the byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _of_characters(alphabet: str) -> Tokenizer:
    """Each character a word. A character that the alphabet lacks is an error there too."""
    surrogate = next((c for c in alphabet if 0xD800 <= ord(c) < 0xE000), None)
    if surrogate is not None:
        raise ExportError(
            f"the alphabet of tokenizer.char has the lone surrogate U+{ord(surrogate):04X}, which no file holds"
        )
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _of_library(encoder: LibraryEncoder) -> tuple[Tokenizer, str | None, bool]:
    """The tokenizer without what it would add at a text's ends; a separator that is no token of it is added."""
    tokenizer = Tokenizer.from_str(json.dumps({**json.loads(encoder.tokenizer.to_str()), "post_processor": None}))
    separator = encoder.separator_id
    if separator is None:
        return tokenizer, None, False
    name = tokenizer.id_to_token(separator)
    if name is not None:
        return tokenizer, name, False
    name = SEPARATOR
    while tokenizer.token_to_id(name) is not None:
        name = f"<{name}>"
    if tokenizer.get_vocab_size() != separator:
        raise ExportError(f"the separator has id {separator}, which is not the one after the last of tokenizer.json")
    tokenizer.add_special_tokens([_special(name)])
    return tokenizer, name, True


def _check_qwen2(tokenizer: Tokenizer) -> None:
    """Raise ExportError unless texts are divided as by Qwen 2: transformers 5 takes that for every qwen2 model, whatever the files say."""
    theirs = Tokenizer(models.BPE())
    theirs.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
    theirs.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    given, wanted = (json.loads(t.to_str()) for t in (tokenizer, theirs))
    if any(_of_ids(given[part]) != _of_ids(wanted[part]) for part in ("normalizer", "pre_tokenizer")):
        raise ExportError(
            "transformers reads the tokenizer of every qwen2 model as Qwen 2's own, which divides text into other words than this one: "
            "the ids would differ. Train with Qwen 2's tokenizer (tokenizer.hf), or export without one (exporter.hf.tokenizer = False)"
        )


def _of_ids(part: Any) -> Any:
    """A part of a tokenizer's JSON without what changes offsets only."""
    if isinstance(part, dict):
        return {key: _of_ids(value) for key, value in part.items() if key != "trim_offsets"}
    return [_of_ids(item) for item in part] if isinstance(part, list) else part


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
