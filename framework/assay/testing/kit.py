"""What all conformance kits share: a kit is a class, a check a method of it, and a plugin is right when every check passes.

Two doors lead to the same checks: a test class (`class TestMine(ModelKit)` in a test file; pytest needs nothing else), and `run` below,
which needs no pytest.
"""

import dataclasses
import functools
import traceback
import unittest
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

from assay.errors import AssayError, did_you_mean
from assay.experiment import Experiment

Status = Literal["passed", "failed", "expected", "skipped"]
K = TypeVar("K", bound="Kit")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Result:
    """How one check ended. about: what it checks. detail: why it failed or was skipped, else empty."""

    name: str
    about: str
    status: Status
    detail: str = ""


class ExpectedFailure(unittest.SkipTest):
    """A check failed that was declared to; pytest counts it as skipped, with the reason."""


class Kit:
    """The checks of one kind. A subclass says how to make the plugin; everything else has a default.

    expected_failures: check -> the reason why this plugin fails it. A check that is declared to fail and passes is a failure.
    A plugin may carry the same as a class attribute, which `assay plugin check` reads as well; the two are taken together.
    experiment: one that uses the plugin, whose other parts the checks then use in place of their own examples.
    """

    kind: ClassVar[str]
    expected_failures: ClassVar[Mapping[str, str]] = {}
    experiment: Experiment | None = None

    def plugin(self) -> Any:
        """A new instance of the plugin to check, the same each time."""
        raise NotImplementedError(f"{type(self).__name__}: define plugin(self), which returns the plugin to check")

    @classmethod
    def checks(cls) -> list[str]:
        """The names of the checks, in the order in which they are written."""
        found = {name: None for base in reversed(cls.__mro__) for name in vars(base)}
        return [name for name in found if getattr(getattr(cls, name), "is_check", False)]

    def declared(self) -> Mapping[str, str]:
        """The expected failures of the kit and of the plugin. Raises ValueError for a check that there is not."""
        declared = {**getattr(type(self.plugin()), "expected_failures", {}), **self.expected_failures}
        for name in declared:
            if name not in self.checks():
                raise ValueError(
                    f"expected_failures names '{name}', which is no check.{did_you_mean(name, self.checks())}"
                )
        return declared


def check(method: Callable[[K], None]) -> Callable[[K], None]:
    """Make a method of a kit a check: its name begins with test_, its docstring's first line says what must hold."""
    assert method.__name__.startswith("test_"), method.__name__
    assert method.__doc__, method.__name__

    @functools.wraps(method)
    def checked(self: K) -> None:
        reason = self.declared().get(method.__name__)
        if reason is None:
            method(self)
            return
        try:
            method(self)
        except unittest.SkipTest:
            raise
        except Exception as error:
            raise ExpectedFailure(f"expected to fail: {reason}") from error
        raise AssertionError(f"declared to fail ({reason}), but it passes; take it out of expected_failures")

    checked.is_check = True  # type: ignore[attr-defined]
    return checked


def once(method: Callable[[K], T]) -> Callable[[K], T]:
    """What a kit's method returns, found once for each class: pytest makes an instance for each check, and all check one plugin."""
    name = f"_once_{method.__name__}"

    @functools.wraps(method)
    def found(self: K) -> T:
        if name not in vars(type(self)):
            setattr(type(self), name, method(self))
        value: T = vars(type(self))[name]
        return value

    return found


def skip(reason: str) -> NoReturn:
    """Leave a check that cannot be made here, or that does not concern this plugin."""
    raise unittest.SkipTest(reason)


def run(kit: Kit) -> Iterator[Result]:
    """The result of every check of `kit`, as each ends. Nothing is raised."""
    for name in kit.checks():
        method = getattr(kit, name)
        about = str(method.__doc__).strip().splitlines()[0].removesuffix(".")
        try:
            method()
        except ExpectedFailure as error:
            yield Result(name, about, "expected", str(error))
        except unittest.SkipTest as error:
            yield Result(name, about, "skipped", str(error))
        except (AssertionError, AssayError) as error:
            yield Result(name, about, "failed", str(error) or _place(error))
        except Exception as error:
            yield Result(name, about, "failed", f"{type(error).__name__}: {error} ({_place(error)})")
        else:
            yield Result(name, about, "passed")


def _place(error: BaseException) -> str:
    """file:line where `error` was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"
