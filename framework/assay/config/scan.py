"""Reads a gin file and its includes into bindings with their places, without looking anything up and without stopping at a mistake."""

import dataclasses
import importlib.util
import io
import os.path
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from gin import config_parser

from assay.config.syntax import parse
from assay.config.values import UNREADABLE, Binding, Macro, Place, Problem, Reference, leaves


@dataclasses.dataclass
class Scan:
    """All statements of a file and what it includes, in order, and the mistakes in reading them."""

    root: str
    header: str = ""
    readable: bool = True
    unread: list[str] = dataclasses.field(default_factory=list)
    statements: list[Binding] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    parents: dict[str, tuple[str, Place]] = dataclasses.field(default_factory=dict)

    @property
    def bindings(self) -> dict[str, Binding]:
        """By key, the statement that counts: the last one."""
        return {binding.key: binding for binding in self.statements}

    @property
    def macros(self) -> dict[str, Binding]:
        """The definitions that count, by macro name."""
        return {key: binding for key, binding in self.bindings.items() if not binding.parameter}

    def report(self, place: Place, message: str) -> None:
        """Add a problem, once."""
        problem = Problem(place.file, place.line, message)
        if problem not in self.problems:
            self.problems.append(problem)

    def mentions(self, name: str) -> bool:
        """Whether a statement that could not be read has the name in it."""
        return any(re.search(rf"(?<![\w.]){re.escape(name)}(?![\w])", statement) for statement in self.unread)

    def sorted_problems(self) -> list[Problem]:
        """The problems by place, the root file's first."""
        return sorted(self.problems, key=lambda p: (p.file != self.root, p.file, p.line))

    def references(self) -> Iterator[tuple[Reference, Binding]]:
        """Every reference in any statement, overridden ones too, with its statement."""
        for binding in self.statements:
            for value in leaves(binding.value):
                if isinstance(value, Reference):
                    yield value, binding

    def macro_uses(self) -> Iterator[tuple[Macro, Binding]]:
        """Every use of a macro in any statement, with its statement."""
        for binding in self.statements:
            for value in leaves(binding.value):
                if isinstance(value, Macro):
                    yield value, binding


def scan(path: str | Path) -> Scan:
    """The statements of the file at `path` and of its includes."""
    found = Scan(root=str(path))
    content = _read(found, Path(path), Place(str(path)))
    if content is None:
        return dataclasses.replace(found, readable=False)
    found.header = _header(content)
    _collect(found, content, str(path), Path(path).parent)
    return found


def scan_text(content: str, name: str) -> Scan:
    """The statements of a text; `name` stands for its file in messages, and includes are relative to it."""
    found = Scan(root=name, header=_header(content))
    _collect(found, content, name, Path(name).parent)
    return found


def scan_key(key: str) -> tuple[str, str, str]:
    """Scope, selector and parameter of a key; the parameter of a macro is empty, its name the selector."""
    scope, selector, parameter = config_parser.parse_binding_key(key)
    return scope, selector, parameter


def _read(found: Scan, path: Path, place: Place) -> str | None:
    """The file's text, or None with the problem reported at `place`."""
    try:
        content = path.read_text(encoding="utf-8")
        if "\0" not in content:
            return content
        reason = "it is not text"
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    found.report(place, f"cannot read {path}: {reason}. Give the path of a gin file.")
    return None


def _header(content: str) -> str:
    """The comment that opens a file."""
    lines = []
    for line in io.StringIO(content):
        if not line.startswith("#"):
            break
        lines.append(line)
    return "".join(lines)


def _collect(found: Scan, content: str, name: str, folder: Path) -> None:
    """Add the statements of one file, following its includes where they stand."""
    statements, mistakes = parse(content)
    for mistake in mistakes:
        found.report(Place(name, mistake.line), mistake.message)
        found.unread.append(mistake.statement)
    header: Place | None = None
    block: Sequence[str] = ()
    for statement in statements:
        place = Place(name, statement.location.line_num)
        if isinstance(statement, config_parser.IncludeStatement):
            _include(found, statement.filename, place, name, folder)
        elif isinstance(statement, config_parser.ImportStatement):
            found.report(
                place, f"remove '{statement.format()}': plugins are found by themselves once they are installed."
            )
        elif isinstance(statement, config_parser.BlockDeclaration):
            header, block = place, (statement.scope, statement.selector)
        else:
            inside = header is not None and (statement.scope, statement.selector) == tuple(block)
            found.statements.append(_binding(statement, place, header if inside else None))


def _binding(statement: Any, place: Place, header: Place | None) -> Binding:
    value = UNREADABLE if any(v is UNREADABLE for v in leaves(statement.value)) else statement.value
    return Binding(statement.scope, statement.selector, statement.arg_name, value, place, header)


def _include(found: Scan, target: str, place: Place, name: str, folder: Path) -> None:
    """Collect an included file: beside the including one, or "package/…/file.gin" of an installed package."""
    path, shown = _locate(target, folder)
    chain = [name]
    while chain[-1] in found.parents:
        chain.append(found.parents[chain[-1]][0])
    if shown in (*chain, found.root):
        found.report(place, f"{target} includes itself: {' <- '.join([shown, *chain])}. Remove one of these includes.")
    elif shown in found.parents:
        found.report(place, f"{target} is already included, at {found.parents[shown][1]}. Remove one of the two.")
    elif path is None:
        message = f"no file {target} beside {PurePath(name).name}, and no installed package has it. Correct the path."
        found.report(place, message)
    else:
        found.parents[shown] = (name, place)
        content = _read(found, path, place)
        if content is not None:
            _collect(found, content, shown, path.parent)


def _locate(target: str, folder: Path) -> tuple[Path | None, str]:
    """The included file and its name in messages. The package is located, not imported."""
    beside = folder / target
    if beside.exists():
        return beside, _normal(beside)
    package, _, rest = target.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() and rest else None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / rest).exists():
            return Path(location) / rest, target
    return None, _normal(beside)


def _normal(path: Path) -> str:
    """The path without detours through "..", so that one file has one name."""
    return os.path.normpath(path)


def ancestors(found: Scan, file: str) -> set[str]:
    """The files that include `file`, directly or not."""
    above: set[str] = set()
    while file in found.parents and file not in above:
        file = found.parents[file][0]
        above.add(file)
    return above
