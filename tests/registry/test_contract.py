"""Which constructors a plugin may have, and what is read from them."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import pytest

from assay.errors import PluginError
from assay.registry import REQUIRED, Parameter, load, parameters, produces, temporary

if TYPE_CHECKING:
    from nowhere import Missing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    width: "int"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived(Base):
    choice: Literal["a", "b"] = "a"
    table: dict[str, int] = dataclasses.field(default_factory=lambda: {"x": 1})
    seed: dataclasses.InitVar[int] = 0


def function(width: int, *, rate: "float | None" = None) -> Base:
    return Base(width=width)


class Plain:
    def __init__(self, width: int = 3) -> None: ...


def keywords(**kwargs: int) -> None: ...
def positional(*args: int) -> None: ...
def positional_only(width: int, /) -> None: ...
def unannotated(width) -> None: ...  # type: ignore[no-untyped-def]
def unresolvable(width: "Missing") -> None: ...


def test_dataclasses_with_inherited_and_made_defaults() -> None:
    assert dict(parameters(Derived)) == {
        "width": Parameter("width", int, REQUIRED),
        "choice": Parameter("choice", Literal["a", "b"], "a"),
        "table": Parameter("table", dict[str, int], {"x": 1}),
        "seed": Parameter("seed", int, 0),
    }


def test_functions_and_plain_classes() -> None:
    assert [(p.name, p.annotation, p.default) for p in parameters(function).values()] == [
        ("width", int, REQUIRED),
        ("rate", float | None, None),
    ]
    assert dict(parameters(Plain)) == {"width": Parameter("width", int, 3)}
    assert produces(function) is Base
    assert produces(Plain) is Plain


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (keywords, r"takes \*\*kwargs: int; a plugin names every parameter"),
        (positional, r"takes \*args: int; a plugin names every parameter"),
        (positional_only, "a plugin names every parameter"),
        (unannotated, "its parameter 'width' has no annotation"),
        (unresolvable, "cannot be resolved: name 'Missing' is not defined; import the type at run time"),
        ([], "a plugin is a class or a function"),
        (Plain(), "a plugin is a class or a function"),
    ],
)
def test_what_the_contract_refuses(plugin: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        parameters(plugin)
    with temporary("model", "refused", plugin), pytest.raises(PluginError, match=r"model\.refused \(.*" + message):
        load("model", "refused")
