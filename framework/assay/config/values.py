"""What a gin file can say: literals, `@references` and `%macros`, and where it says them."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where a statement stands. Line 0 means the whole file, or an override such as "--set experiment.steps=3"."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """One mistake and its place; `str()` is "file:line: message"."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{Place(self.file, self.line)}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/kind.name()`, or without parentheses where `called` is False."""

    scope: str
    selector: str
    called: bool

    def __str__(self) -> str:
        return f"@{scoped(self.scope, self.selector)}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`, perhaps with scopes before the name."""

    name: str

    def __str__(self) -> str:
        return f"%{self.name}"


class _Unreadable:
    """Stands for a value that could not be read; its problem is already reported."""

    def __repr__(self) -> str:
        return "unreadable"


UNREADABLE: Final = _Unreadable()


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/selector.parameter = value`. A macro's definition has its name as selector, and no parameter.

    header: the place of the block's first line, where the binding stands in a block.
    """

    scope: str
    selector: str
    parameter: str
    value: Any
    place: Place
    header: Place | None = None

    @property
    def key(self) -> str:
        """The left side as it is written: "train/dataset.digits.size", or "LR" for a macro."""
        return scoped(self.scope, self.selector) + (f".{self.parameter}" if self.parameter else "")


def scoped(scope: str, name: str) -> str:
    """The name with its scope before it."""
    return f"{scope}/{name}" if scope else name


def leaves(value: Any) -> Iterator[Any]:
    """Every value inside lists, tuples and dicts (keys too), or the value itself."""
    if isinstance(value, dict):
        for item in value.items():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def text(value: Any) -> str:
    """The value as gin text. For every value that gin can read, reading it back gives an equal value."""
    if isinstance(value, Reference | Macro):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text(k)}: {text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(text, value)) + (",)" if len(value) == 1 else ")")
    return repr(value)


def plain(value: Any) -> Any:
    """The value for JSON: tuples as lists, references, macros and whatever JSON cannot say as text."""
    if isinstance(value, dict):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | int | float | None):
        return value
    return text(value)
