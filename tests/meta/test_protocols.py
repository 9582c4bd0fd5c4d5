"""The pages show each kind's Protocol exactly as the code has it: every method, its signature and its documentation."""

import ast
from pathlib import Path

import pytest

from assay.kinds import KINDS

ROOT = Path(__file__).parents[2]
SOURCE = ast.parse((ROOT / "framework/assay/kinds.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_page_shows_the_protocol(kind) -> None:
    page = (ROOT / f"docs/kinds/{kind.name}.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```py\n")[1:]]
    shown = [methods(ast.parse(block), kind.protocol.__name__) for block in blocks]
    assert methods(SOURCE, kind.protocol.__name__) in shown


def methods(tree: ast.Module, name: str) -> list[tuple[str, str, str]]:
    """(name, signature, documentation) of each method of class `name`; quotes around types and line breaks do not matter."""
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    functions = [f for node in found for f in node.body if isinstance(f, ast.FunctionDef)]
    return [(f.name, signature(f), " ".join((ast.get_docstring(f) or "").split())) for f in functions]


def signature(function: ast.FunctionDef) -> str:
    text = f"{ast.unparse(function.args)} -> {ast.unparse(function.returns) if function.returns else ''}"
    return text.replace("'", "").replace('"', "")
