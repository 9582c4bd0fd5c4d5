"""One converter for all tests of a module: it takes seconds to start."""

from collections.abc import Iterator

import pytest

from assay_export.onnx.converter import Converter


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter() as found:
        yield found
