"""The pages: their Python runs, every kind has one, their links lead somewhere, and the README names every verb."""

import re
from pathlib import Path

import pytest

from assay.cli.main import VERBS
from assay.kinds import KINDS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PROSE_WITH_CODE = [*sorted((ROOT / "docs/kinds").glob("*.md")), *sorted((ROOT / "docs/guide").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_of(page: Path) -> str:
    """The page's Python blocks as one program, each at its own line numbers."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside = inside and line != "```"
        kept.append(line if inside else "")
        inside = inside or line == "```python"
    return "\n".join(kept) + "\n"


@pytest.mark.slow  # the guides train, and each page compiles what it shows
@pytest.mark.parametrize("page", [p for p in PROSE_WITH_CODE if python_of(p).strip()], ids=name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(page), name(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("kind", [k.name for k in KINDS])
def test_every_kind_has_a_page_with_an_example(kind: str) -> None:
    page = ROOT / "docs/kinds" / f"{kind}.md"
    assert page.exists()
    assert python_of(page).strip()
    assert f"assay.{kind}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = [t.partition("#")[0] for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert [t for t in targets if t and not (page.parent / t).exists()] == []


def test_the_first_plugin_of_the_guide_is_the_example_s_and_short() -> None:
    guide = ROOT / "docs/guide/first_plugin.md"
    code = (ROOT / "plugins/example-plugin/src/assay_example/__init__.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in guide.read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if line]) <= 50


def test_the_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"assay {verb}" not in text] == []


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / t).resolve() for t in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert [name(p) for p in PAGES if p.is_relative_to(ROOT / "docs") and p not in linked] == []
