"""tokenizer.json gives the ids that the model was trained on, for any text."""

import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from assay.errors import ExportError
from assay_plugins.exporters.tokenizer import QWEN2_WORDS, tokenizer_files
from assay_plugins.tokenizers.bpe import BPE
from assay_plugins.tokenizers.byte import Bytes
from assay_plugins.tokenizers.char import Char, CharEncoder
from assay_plugins.tokenizers.hf import HFTokenizer

STDLIB = Path(sysconfig.get_paths()["stdlib"])
ODD = ["", " ", "\n\n\t x", "a  b ", "äöü ß 漢字 🙂‍↔️ e\u0301", "\x00\x7f\x80", "<|endoftext|> <s>", "it's I'll 1234 --"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real text: sources of the standard library, one of them with many scripts."""
    names = ("ast.py", "json/decoder.py", "heapq.py", "test/test_unicode_identifiers.py", "html/entities.py")
    there = [STDLIB / name for name in names if (STDLIB / name).is_file()]
    assert len(there) >= 4
    return [path.read_text(encoding="utf-8")[:40_000] for path in there]


def written(encoder: Any) -> tuple[Tokenizer, dict[str, Any]]:
    files = tokenizer_files(encoder, 128, "llama")
    tokenizer = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    settings = dict(files["tokenizer_config.json"])
    tokenizer.encode_special_tokens = settings["split_special_tokens"]  # as transformers does with this setting
    return tokenizer, settings


def library_file(folder: Path) -> Path:
    """A tokenizer that puts special tokens at the ends of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["some words, some more words"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("name", ["bytes", "bpe", "char", "hf"])
def test_the_ids_of_real_text(texts: list[str], tmp_path: Path, name: str) -> None:
    recipes = {
        "bytes": lambda: Bytes(),
        "bpe": lambda: BPE(vocab_size=600),
        "char": lambda: Char(extra="".join(ODD)),
        "hf": lambda: HFTokenizer(path=str(library_file(tmp_path)), separator="<s>"),
    }
    encoder = recipes[name]().fit(texts)
    tokenizer, settings = written(encoder)
    separator = encoder.separator_id
    for text in [*texts, *ODD]:
        found = tokenizer.encode(text).ids  # with what is added at the ends: nothing
        assert found == encoder.encode(text).tolist()
        if separator not in found:  # which decodes to nothing here
            assert tokenizer.decode(found, skip_special_tokens=False) == encoder.decode(np.asarray(found, np.int64))
    assert ("eos_token" in settings) == (separator is not None)
    if separator is not None:
        assert tokenizer.token_to_id(settings["eos_token"]) == separator
        assert tokenizer.decode([separator]) == ""
    assert tokenizer.get_vocab_size() == encoder.vocab_size


def test_bytes_that_are_not_utf8_decode_alike(texts: list[str]) -> None:
    rng = np.random.default_rng(0)
    for recipe in (Bytes(), BPE(vocab_size=300)):
        encoder = recipe.fit(texts)
        tokenizer, _ = written(encoder)
        for ids in rng.integers(0, encoder.vocab_size, (50, 20)):
            assert tokenizer.decode(ids.tolist()) == encoder.decode(ids)


def test_a_character_that_is_not_in_the_alphabet_is_an_error_there_too() -> None:
    tokenizer, _ = written(Char().fit(["abc"]))
    assert tokenizer.encode("cab").ids == [2, 0, 1]
    with pytest.raises(Exception, match="Missing"):
        tokenizer.encode("cat")


def test_what_has_no_tokenizer_json_is_refused() -> None:
    with pytest.raises(ExportError, match=r"lone surrogate U\+D800, which no file holds"):
        tokenizer_files(CharEncoder("a\ud800"), 128, "llama")
    with pytest.raises(
        ExportError, match=r"the tokenizer object has no form as tokenizer\.json; what have one: tokenizer\.bytes"
    ):
        tokenizer_files(object(), 128, "llama")  # type: ignore[arg-type]


def test_a_qwen2_model_takes_no_other_tokenizer(tmp_path: Path) -> None:
    for recipe in (Bytes(), BPE(vocab_size=300), Char(extra="a")):
        with pytest.raises(ExportError, match="reads the tokenizer of every qwen2 model as Qwen 2's own"):
            tokenizer_files(recipe.fit(["a"]), 128, "qwen2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.add_tokens(["a"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_files(HFTokenizer(path=str(tmp_path)).fit([]), 128, "qwen2")
