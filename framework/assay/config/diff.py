"""The differences between two configurations, by key and with types: 1 and 1.0 differ. Nothing is imported or built.

A gin file stands for what it says, macros replaced. A run directory stands for what it used (operative.gin, defaults included)
when it is compared with another run, and for what it was given (config.gin) when it is compared with a file.
"""

import dataclasses
from pathlib import Path
from typing import Any

from assay.config.scan import Scan, scan
from assay.config.values import Macro, text
from assay.errors import ConfigError, RunError


class _Absent:
    """The value on the side that lacks the key."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclasses.dataclass(frozen=True)
class Change:
    """One key whose values differ. `before` or `after` is ABSENT where that side lacks the key."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is ABSENT:
            return f"+ {self.key} = {_typed(self.after)}"
        if self.after is ABSENT:
            return f"- {self.key} = {_typed(self.before)}"
        return f"~ {self.key}: {_typed(self.before)} -> {_typed(self.after)}"


def diff(a: Path, b: Path) -> list[Change]:
    """What changes from `a` to `b` (gin files or run directories), by key.

    Raises ConfigError for a file that cannot be read, RunError for a directory that is no run.
    """
    runs = a.is_dir() and b.is_dir()
    before, after = (_values(_file(path, "operative.gin" if runs else "config.gin")) for path in (a, b))
    return [
        Change(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted({*before, *after})
        if not _same(before.get(key, ABSENT), after.get(key, ABSENT))
    ]


def _file(path: Path, recorded: str) -> Path:
    if not path.is_dir():
        return path
    if not (path / recorded).is_file():
        raise RunError(f"{path} is no run directory: it has no {recorded}. Give a run directory or a gin file.")
    return path / recorded


def _values(path: Path) -> dict[str, Any]:
    """Every bound value by key, macros replaced."""
    found = scan(path)
    if found.problems:
        raise ConfigError("\n".join(map(str, sorted(found.problems))))
    return {key: _without_macros(b.value, found, ()) for key, b in found.bindings.items() if b.parameter}


def _without_macros(value: Any, found: Scan, within: tuple[str, ...]) -> Any:
    """The value with macros replaced; an undefined or circular one stays as it is."""
    if isinstance(value, dict):
        return {_without_macros(k, found, within): _without_macros(v, found, within) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_macros(v, found, within) for v in value)
    if isinstance(value, Macro) and value.name in found.macros and value.name not in within:
        return _without_macros(found.macros[value.name].value, found, (*within, value.name))
    return value


def _same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all through."""
    return text(a) == text(b) if type(a) is type(b) else False


def _typed(value: Any) -> str:
    return f"{text(value)} ({'reference' if text(value).startswith('@') else type(value).__name__})"
