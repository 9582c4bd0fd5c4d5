"""The standard library's sources: the same everywhere, divided by file."""

import dataclasses

import numpy as np
import pytest

from assay.data.blocks import read
from assay.errors import DataError
from assay.kinds import Dataset
from assay_plugins.datasets.python_stdlib import PythonStdlib
from assay_plugins.tokenizers.byte import Bytes

SMALL = PythonStdlib(tokenizer=Bytes(), context=64, max_bytes=300_000)


def test_files_are_on_one_side_each() -> None:
    assert isinstance(SMALL, Dataset)
    tree = PythonStdlib(tokenizer=Bytes(), context=64).corpus()
    train, validation = set(tree.names("train")), set(tree.names("validation"))
    assert train | validation == set(tree.files)
    assert not train & validation
    assert {"argparse.py", "json/decoder.py"} <= train | validation
    assert not [name for name in tree.files if {"test", "tests", "site-packages"}.intersection(name.split("/")[:-1])]
    assert 0.05 < len(validation) / len(tree.files) < 0.15
    total = sum((tree.root / name).stat().st_size for name in tree.files)
    assert 5e6 < total < 30e6


def test_max_bytes_bounds_and_keeps_sides() -> None:
    small, tree = SMALL.corpus(), PythonStdlib(tokenizer=Bytes(), context=64).corpus()
    assert 200_000 < sum((small.root / name).stat().st_size for name in small.files) <= 300_000
    assert set(small.names("validation")) <= set(tree.names("validation"))


def test_examples_are_its_text() -> None:
    source = SMALL.source("validation")
    tree = SMALL.corpus()
    found = read(source, np.arange(len(source)))
    targets = found["targets"][found["targets"] >= 0]
    text = b"\xff".join((tree.root / name).read_bytes() for name in tree.names("validation"))
    assert targets.astype(np.uint8).tobytes() == text[1:]


def test_the_fingerprint_changes_with_options() -> None:
    changes = [{}, {"max_bytes": 200_000}, {"validation_fraction": 0.3}, {"context": 32}]
    assert len({dataclasses.replace(SMALL, **change).fingerprint() for change in changes}) == 4  # type: ignore[arg-type]


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="split 'train' of the 0 source files"):
        dataclasses.replace(SMALL, max_bytes=1).source("train")
    with pytest.raises(ValueError, match="max_bytes = 0"):
        dataclasses.replace(SMALL, max_bytes=0)
