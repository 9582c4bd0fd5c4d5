"""Tokenizers: bytes, characters, byte-level BPE, and tokenizer.json files."""
