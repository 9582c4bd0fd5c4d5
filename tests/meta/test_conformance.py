"""Every plugin that comes with Assay is checked by its kind's kit somewhere in these tests."""

import ast
from pathlib import Path

import pytest

from assay import registry
from assay.kinds import KINDS
from assay.testing import KITS

TESTS = Path(__file__).parents[1]


def test_every_kind_has_a_kit_a_page_and_a_template() -> None:
    assert [kind.name for kind in KINDS if kind.name not in KITS] == []
    root = TESTS.parent
    assert [k.name for k in KINDS if not (root / f"docs/kinds/{k.name}.md").exists()] == []
    assert [k.name for k in KINDS if not (root / f"framework/assay/templates/{k.name}.py").exists()] == []


@pytest.mark.parametrize("kind", KITS)
def test_every_plugin_is_checked(kind: str) -> None:
    mentioned = {name for path in TESTS.rglob("test_*.py") for name in built_beside(KITS[kind].__name__, path)}
    ours = [e for e in registry.entries(kind) if e.distribution == "assay"]
    assert ours
    assert [e.name for e in ours if e.target.split(":")[1] not in mentioned] == []


def built_beside(kit: str, path: Path) -> set[str]:
    """The names that are called in a test file which uses the kit."""
    text = path.read_text(encoding="utf-8")
    if kit not in text:
        return set()
    calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)}
