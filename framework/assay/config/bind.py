"""Builds an experiment with gin: registers the named plugins, parses the bindings, finalizes, calls the root once, and cleans up.

gin's configuration is global to the process and locked once final, and it replaces exceptions by classes that do not pickle.
So what is registered are functions of ours: they build the plugin, and note failures instead of raising through gin.
"""

import contextlib
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gin

from assay.config.check import Examined
from assay.config.fit import fit
from assay.config.record import statement
from assay.config.resolve import ROOT, Node, statements_used
from assay.config.values import Place, leaves, scoped
from assay.errors import AssayError
from assay.experiment import Experiment
from assay.kinds import KINDS
from assay.registry import parameters

_lock = threading.RLock()
_session: "_Session | None" = None
_PROTOCOLS = {kind.name: kind.protocol for kind in KINDS}


class Built(NamedTuple):
    """The experiment, or None when something is wrong; and the first exception that a constructor raised."""

    experiment: Experiment | None
    cause: Exception | None


def build(examined: Examined) -> Built:
    """Build what has no problem. What constructors complain of is added to the scan's problems.

    With problems already found, what can be built is built nevertheless, so that its constructors' complaints are not left for
    the next try.
    """
    session = _Session(examined)
    with _gin(examined, session):
        for node in _buildable(examined.root):
            built = gin.get_configurable(scoped(node.scope, node.selector))()
            if node is examined.root and isinstance(built, Experiment):
                session.experiment = built
    return Built(None if examined.scan.problems else session.experiment, session.cause)


def _buildable(node: Node) -> Iterator[Node]:
    """The largest parts of the tree that have no problem."""
    if node.sound:
        yield node
    else:
        for child in node.children:
            yield from _buildable(child)


class _Failed:
    """Stands for an object that could not be built."""


class _Session:
    """One building: turns gin's calls into objects and notes what fails."""

    def __init__(self, examined: Examined) -> None:
        self._scan = examined.scan
        self._nodes = {(n.scope, n.selector): n for n in examined.root.walk()}
        self._by_name = {n.name: n for n in examined.root.walk()}
        self.experiment: Experiment | None = None
        self.cause: Exception | None = None

    def construct(self, selector: str, plugin: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """The object, or _Failed."""
        if any(isinstance(leaf, _Failed) for leaf in leaves(arguments)):
            return _Failed()
        known = parameters(plugin)
        try:
            made = plugin(**{name: fit(value, known[name].annotation).value for name, value in arguments.items()})
        except Exception as error:
            self.cause = self.cause or error
            named = f"{type(error).__name__}: {error}"
            wanted = isinstance(error, AssayError | ValueError) and str(error).strip()
            return self._complaint(selector, wanted or f"cannot be built: {named}")
        return self._conforming(selector, made)

    def _conforming(self, selector: str, made: Any) -> Any:
        """The object, if it has what its kind must offer."""
        protocol = _PROTOCOLS.get(selector.partition(".")[0])
        if protocol is None or isinstance(made, protocol):
            return made
        wanted = [name for name in vars(protocol) if not name.startswith("_") and not hasattr(made, name)]
        article = f"{selector.partition('.')[0]} needs {', '.join(wanted) or '__call__'}"
        return self._complaint(
            selector, f"{type(made).__name__} is no {protocol.__name__}: a {article}; correct the plugin"
        )

    def _complaint(self, selector: str, message: str) -> _Failed:
        """Report each line at the parameter that it starts with, or at the reference to the plugin."""
        node = self._nodes.get((gin.current_scope_str(), selector)) or self._by_name.get(selector)
        for line in filter(None, map(str.strip, message.splitlines())):
            place, owned = self._place(node, line)
            self._scan.report(place, line if owned else f"{node.name if node else selector}: {line}")
        return _Failed()

    def _place(self, node: Node | None, line: str) -> tuple[Place, bool]:
        if node is None:
            return Place(self._scan.root), False
        word = re.match(r"[\w./]+", line)
        key = word[0] if word else ""
        argument = node.arguments.get(key.rpartition(".")[2])
        if argument is None or key.rpartition(".")[0] not in ("", node.selector, node.name):
            return node.place, key.startswith(node.selector)
        return argument.binding.place if argument.binding else node.place, "." in key


@contextlib.contextmanager
def _gin(examined: Examined, session: _Session) -> Iterator[None]:
    """gin with this experiment's plugins and bindings, final; empty again afterwards."""
    global _session
    with _lock:
        gin.clear_config()
        _session = session
        try:
            with gin.config.interactive_mode():
                for selector, plugin in {**examined.plugins, ROOT: Experiment}.items():
                    _register(selector, plugin)
            sound = statements_used(_buildable(examined.root), examined.scan)
            gin.parse_config("\n".join(map(statement, sound)))
            gin.finalize()
            yield
        finally:
            _session = None
            gin.clear_config()


def _register(selector: str, plugin: Callable[..., Any]) -> None:
    module, _, name = selector.rpartition(".")
    gin.register(name, module=module or None)(_constructor(selector, plugin))


@functools.cache
def _constructor(selector: str, plugin: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the plugin's parameters that builds it in the present session. Kept, since gin keeps it anyway."""

    def construct(**arguments: Any) -> Any:
        assert _session is not None
        return _session.construct(selector, plugin, arguments)

    construct.__module__ = None  # type: ignore[assignment]  # or gin would put it before the root's name
    wanted = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in parameters(plugin)]
    construct.__signature__ = inspect.Signature(wanted)  # type: ignore[attr-defined]
    return construct
