"""tokenizer.json files: byte-level, SentencePiece-like, and what is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from assay.data.spec import Encoder
from assay.errors import DataError
from assay.kinds import Tokenizer
from assay_plugins.tokenizers.bpe import BPE
from assay_plugins.tokenizers.hf import HFTokenizer


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """Like GPT-2's: special tokens, which a template would put at both ends, and truncation."""
    tokenizer = BPE(vocab_size=300).fit(["hello world, hello there"] * 5).tokenizer
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens(["naive"])
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_byte_level(byte_level: Path, tmp_path: Path) -> None:
    recipe = HFTokenizer(path=str(byte_level), separator="<|endoftext|>")
    encoder = recipe.fit([])
    assert isinstance(recipe, Tokenizer)
    assert isinstance(encoder, Encoder)
    text = "hello naive world é漢"
    ids = encoder.encode(text)
    assert encoder.decode(ids) == text
    assert encoder.decode(np.asarray([encoder.separator_id, *ids, encoder.separator_id])) == text
    assert encoder.token_bytes()[ids].sum() == len(text.encode())
    assert encoder.token_bytes()[encoder.separator_id] == 0
    assert max(ids) < encoder.vocab_size
    (tmp_path / "saved").mkdir()
    recipe.save(encoder, tmp_path / "saved")
    for copy in (recipe.restore(tmp_path / "saved"), pickle.loads(pickle.dumps(encoder))):
        assert copy.fingerprint == encoder.fingerprint
        assert copy.separator_id == encoder.separator_id


def test_metaspace_with_byte_fallback(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(["hello world hello there"] * 5, trainer)
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if not token["content"].startswith("<0x")]
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    encoder = HFTokenizer(path=str(tmp_path / "tokenizer.json"), separator="</s>").fit([])
    text = "hello world é there"
    ids = encoder.encode(text)
    assert encoder.decode(ids) == text
    assert encoder.token_bytes()[ids].sum() == len(text.encode())


def test_identity_is_content(byte_level: Path) -> None:
    file = byte_level / "tokenizer.json"
    before = HFTokenizer(path=str(byte_level)).identity()
    assert HFTokenizer(path=str(file)).identity() == before
    assert HFTokenizer(path=str(file), separator="<|endoftext|>").identity() != before
    file.write_text(file.read_text() + " ")
    assert HFTokenizer(path=str(file)).identity() != before


def test_mistakes_are_named(byte_level: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no token '<\|endoftext>'.*Did you mean '<\|endoftext\|>'"):
        HFTokenizer(path=str(byte_level), separator="<|endoftext>").fit([])
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*nowhere"):
        HFTokenizer(path=str(tmp_path / "nowhere")).identity()
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"cannot load the tokenizer .*bad\.json"):
        HFTokenizer(path=str(tmp_path / "bad.json")).fit([])


def test_unknown_token_bytes_are_refused(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = HFTokenizer(path=str(tmp_path)).fit([])
    assert encoder.encode("ab").tolist() == [1, 2]
    with pytest.raises(DataError, match="leave out metrics per byte"):
        encoder.token_bytes()
