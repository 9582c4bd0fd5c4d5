"""Kits as tests use them: around a plugin that is at hand, and what a run of one says."""

import pytest

from assay.testing import run


@pytest.fixture
def kit_around():
    """(kit class, plugin, **overrides) -> a kit that checks that plugin."""

    def make(kit, plugin, **overrides):
        return type("Found", (kit,), {"plugin": lambda self: plugin, **overrides})()

    return make


@pytest.fixture
def failures():
    """kit -> the names of the checks that fail, with what each says."""
    return lambda kit: {r.name: r.detail for r in run(kit) if r.status == "failed"}
