"""An op: one specification, several implementations, and the choice among them, made while jax traces.

OP = Op("softmax", reference)

@OP.register("mosaic_sm90", supports=for_hopper, priority=20)
def mosaic(x): ...

OP(x)                          # the best implementation that supports the target and the arguments
OP(x, impl="mosaic_sm90")      # this one, or ImplementationError with the reason
"""

import contextlib
import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from assay_kernels import compat
from assay_kernels.record import ATTRIBUTE, Choice, note
from assay_kernels.target import Target, current_target
from assay_kernels.tuning import configurations

Function = Callable[..., Any]
Supports = Callable[..., str | None]
_forced = jax.make_user_context(())
_further: Any = jax.make_user_context(())
_counting: Any = jax.make_user_context(False)
_log = logging.getLogger("assay_kernels")


class ImplementationError(ValueError):
    """The implementation asked for cannot do this call; the message says why."""


class Further(Protocol):
    """An implementation from elsewhere, for `using`. Hashable and comparable by value, as a frozen dataclass is."""

    @property
    def op(self) -> str:
        """The op that it implements."""

    @property
    def name(self) -> str:
        """What it is called in `impl` and in records."""

    @property
    def priority(self) -> int:
        """auto takes the highest that supports the call; the reference has 0, those of this package 5 to 30."""

    def supports(self, target: Target, *arguments: Any) -> str | None:
        """None, or in words why it cannot do a call with these arguments on this target."""

    def __call__(self, *arguments: Any) -> Any:
        """What the reference returns."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op. supports: (target, *arguments, **options) -> None, or in words why it cannot do such a call.

    derivative: another implementation, which computes in its place where it is differentiated; "" where it does so itself.
    """

    name: str
    function: Function
    supports: Supports
    priority: int
    derivative: str = ""


class Op:
    """An op and its implementations. reference: the specification, in plain jax.numpy; it supports everything, at priority 0.

    counted: has the products that the op needs at least, and its shapes, for `counting`; the reference's without it.
    """

    def __init__(self, name: str, reference: Function, counted: Function | None = None) -> None:
        self.name = name
        self._counted = counted or reference
        self._implementations: dict[str, Implementation] = {}
        self.register("reference", supports=lambda target, *arguments, **options: None)(reference)

    def register(
        self, name: str, *, supports: Supports, priority: int = 0, derivative: str = ""
    ) -> Callable[[Function], Function]:
        """A decorator that adds an implementation with the reference's signature. Raises ValueError for a name that is taken.

        derivative: see Implementation; the choice says it.
        """
        if name == "auto" or name in self._implementations:
            raise ValueError(f"{self.name}: the name {name!r} is taken; there are auto, {', '.join(self.names)}")

        def add(function: Function) -> Function:
            self._implementations[name] = Implementation(name, function, supports, priority, derivative)
            return function

        return add

    @property
    def names(self) -> list[str]:
        """The implementations, those of `using` among them, the one that is preferred first."""
        return list(self._every())

    def _every(self) -> dict[str, Implementation]:
        further = [Implementation(f.name, f, f.supports, f.priority) for f in _further.value if f.op == self.name]
        return {i.name: i for i in sorted([*further, *self._implementations.values()], key=lambda i: -i.priority)}

    def __call__(self, *arguments: Any, impl: str = "auto", **options: Any) -> Any:
        """The op by the implementation `impl`, or by the best one. Raises ImplementationError where `impl` cannot do it."""
        if _counting.value:
            return self._counted(*arguments, **options)
        forced = dict(_forced.value).get(self.name)
        how = "asked for" if impl != "auto" else "forced" if forced else "auto"
        wanted = forced if impl == "auto" and forced else impl
        target = current_target()
        chosen, refused = self.choose(target, wanted, *arguments, **options)
        arrays = tuple(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arguments if hasattr(x, "dtype"))
        name = f"{self.name}.{chosen.name}"
        with jax.named_scope(f"kernels.{name}"), compat.tagged(**{ATTRIBUTE: name}), configurations() as configs:
            result = chosen.function(*arguments, **options)
        choice = Choice(
            self.name, chosen.name, how, tuple(refused.items()), arrays, target, tuple(configs), chosen.derivative
        )
        note(choice)
        _log.info("%s", choice)
        return result

    def choose(
        self, target: Target, impl: str, *arguments: Any, **options: Any
    ) -> tuple[Implementation, Mapping[str, str]]:
        """(the implementation for such a call, the reason why not for each that is preferred to it)."""
        if impl != "auto":
            return self._explicit(target, impl, *arguments, **options), {}
        refused: dict[str, str] = {}
        for name, implementation in self._every().items():
            reason = implementation.supports(target, *arguments, **options)
            if reason is None:
                return implementation, refused
            refused[name] = reason
        raise AssertionError(f"{self.name}: the reference supports everything")

    def _explicit(self, target: Target, impl: str, *arguments: Any, **options: Any) -> Implementation:
        every = self._every()
        if impl not in every:
            raise ImplementationError(
                f"{self.name} has no implementation {impl!r}; there are auto, {', '.join(self.names)}"
            )
        reason = every[impl].supports(target, *arguments, **options)
        if reason is not None:
            raise ImplementationError(f"{self.name}: {impl} cannot do this call: {reason}")
        return every[impl]


@contextlib.contextmanager
def force(**implementations: str) -> Iterator[None]:
    """Inside, each op named uses that implementation wherever its call says "auto"; what jit has traced is traced again."""
    with _forced(tuple(sorted({**dict(_forced.value), **implementations}.items()))):
        yield


@contextlib.contextmanager
def using(*implementations: Further) -> Iterator[None]:
    """Inside, ops have these implementations as well; what jit has traced is traced again. ValueError for what `problem_of` finds."""
    for i, implementation in enumerate(implementations):
        if problem := problem_of(implementation, [*_further.value, *implementations[:i]]):
            raise ValueError(problem)
    with _further((*_further.value, *implementations)):
        yield


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Inside, ops are traced with the products that they need at least, whatever implementation would run; for counting operations."""
    with _counting(True):
        yield


def problem_of(implementation: Further, others: Sequence[Further] = ()) -> str:
    """What is wrong with an implementation among `others`, in words, or nothing."""
    if implementation.op not in ops():
        return f"{implementation.name} implements {implementation.op!r}; the ops are {', '.join(ops())}"
    same = [f.name for f in others if f.op == implementation.op]
    if implementation.name in ["auto", *op_of(implementation.op)._implementations, *same]:
        return f"{implementation.op} has an implementation {implementation.name!r} already; choose another name"
    return ""


def ops() -> list[str]:
    """The names of all ops: the packages in this one."""
    package = importlib.import_module("assay_kernels")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)


def op_of(name: str) -> Op:
    """The op of that name. Raises ValueError where there is none."""
    if name not in ops():
        raise ValueError(f"there is no op {name!r}; the ops are {', '.join(ops())}")
    found: Op = importlib.import_module(f"assay_kernels.{name}").OP
    return found
