"""An op: one specification, several implementations, and the choice among them, made while jax traces.

OP = Op("softmax", reference)

@OP.register("mosaic_sm90", supports=for_hopper, priority=20)
def mosaic(x): ...

OP(x)                          # the best implementation that supports the target and the arguments
OP(x, impl="mosaic_sm90")      # this one, or ImplementationError with the reason
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from assay_kernels import compat
from assay_kernels.record import ATTRIBUTE, Choice, note
from assay_kernels.target import Target, current_target
from assay_kernels.tuning import configurations

Function = Callable[..., Any]
Supports = Callable[..., str | None]
_forced = jax.make_user_context(())
_log = logging.getLogger("assay_kernels")


class ImplementationError(ValueError):
    """The implementation asked for cannot do this call; the message says why."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op. supports: (target, *arguments, **options) -> None, or in words why it cannot do such a call."""

    name: str
    function: Function
    supports: Supports
    priority: int


class Op:
    """An op and its implementations. reference: the specification, in plain jax.numpy; it supports everything, at priority 0."""

    def __init__(self, name: str, reference: Function) -> None:
        self.name = name
        self._implementations: dict[str, Implementation] = {}
        self.register("reference", supports=lambda target, *arguments, **options: None)(reference)

    def register(self, name: str, *, supports: Supports, priority: int = 0) -> Callable[[Function], Function]:
        """A decorator that adds an implementation with the reference's signature. Raises ValueError for a name that is taken."""
        if name == "auto" or name in self._implementations:
            raise ValueError(f"{self.name}: the name {name!r} is taken; there are auto, {', '.join(self.names)}")

        def add(function: Function) -> Function:
            self._implementations[name] = Implementation(name, function, supports, priority)
            return function

        return add

    def unregister(self, name: str) -> None:
        """Take an implementation away; for tests."""
        del self._implementations[name]

    @property
    def names(self) -> list[str]:
        """The implementations, the one that is preferred first."""
        return [i.name for i in sorted(self._implementations.values(), key=lambda i: -i.priority)]

    def __call__(self, *arguments: Any, impl: str = "auto", **options: Any) -> Any:
        """The op by the implementation `impl`, or by the best one. Raises ImplementationError where `impl` cannot do it."""
        forced = dict(_forced.value).get(self.name)
        how = "asked for" if impl != "auto" else "forced" if forced else "auto"
        wanted = forced if impl == "auto" and forced else impl
        target = current_target()
        chosen, refused = self.choose(target, wanted, *arguments, **options)
        arrays = tuple(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arguments if hasattr(x, "dtype"))
        name = f"{self.name}.{chosen.name}"
        with jax.named_scope(f"kernels.{name}"), compat.tagged(**{ATTRIBUTE: name}), configurations() as configs:
            result = chosen.function(*arguments, **options)
        choice = Choice(self.name, chosen.name, how, tuple(refused.items()), arrays, target, tuple(configs))
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
        for name in self.names:
            implementation = self._implementations[name]
            reason = implementation.supports(target, *arguments, **options)
            if reason is None:
                return implementation, refused
            refused[name] = reason
        raise AssertionError(f"{self.name}: the reference supports everything")

    def _explicit(self, target: Target, impl: str, *arguments: Any, **options: Any) -> Implementation:
        if impl not in self._implementations:
            raise ImplementationError(
                f"{self.name} has no implementation {impl!r}; there are auto, {', '.join(self.names)}"
            )
        reason = self._implementations[impl].supports(target, *arguments, **options)
        if reason is not None:
            raise ImplementationError(f"{self.name}: {impl} cannot do this call: {reason}")
        return self._implementations[impl]


@contextlib.contextmanager
def force(**implementations: str) -> Iterator[None]:
    """Inside, each op named uses that implementation wherever its call says "auto"; what jit has traced is traced again."""
    with _forced(tuple(sorted({**dict(_forced.value), **implementations}.items()))):
        yield
