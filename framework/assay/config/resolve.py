"""Follows the references from `experiment` as gin would when it builds it: scopes, macros, defaults, and what is missing or circular.

The result is a tree of Nodes, one for each plugin that would be built, with every parameter's value and where it comes from.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from assay.config.fit import Fit, Made, asks_for, fit
from assay.config.scan import Scan
from assay.config.values import UNREADABLE, Binding, Macro, Place, Reference, leaves, scoped
from assay.experiment import Experiment
from assay.registry import REQUIRED, Parameter, parameters, produces

ROOT = "experiment"
_GIN_REQUIRED = "gin.REQUIRED"


@dataclasses.dataclass(frozen=True)
class Argument:
    """One parameter's value as the constructor will take it, and its binding; None for a default."""

    value: Any
    binding: Binding | None


@dataclasses.dataclass
class Node:
    """One object to build: the experiment, or a plugin in a scope.

    scope: the active gin scope. name: selector with the part of the scope that any binding mentions; unique by its values.
    place: of the statement that first refers to it. sound: whether nothing is wrong with it or below it.
    """

    scope: str
    selector: str
    name: str
    place: Place
    plugin: Callable[..., Any]
    arguments: dict[str, Argument] = dataclasses.field(default_factory=dict)
    children: list["Node"] = dataclasses.field(default_factory=list)
    sound: bool = True

    def walk(self) -> Iterator["Node"]:
        """This node and those below it, each name once, in order of first reference."""
        seen: set[str] = set()
        pending = [self]
        while pending:
            node = pending.pop(0)
            if node.name not in seen:
                seen.add(node.name)
                yield node
                pending = [*node.children, *pending]


def resolve(scan: Scan, plugins: Mapping[str, Callable[..., Any]]) -> Node:
    """The tree of what would be built. Problems are added to `scan`; parts that have one are marked unsound.

    plugins: by selector, those that could be loaded.
    """
    resolver = _Resolver(scan, plugins, scan.statements)
    root = resolver.node(ROOT, "", ROOT, Place(scan.root, 1))
    resolver.judge_unused(root)
    if not root.sound:
        return root
    # Names must not depend on statements without effect, or a record would not give the same names again.
    return _Resolver(scan, plugins, statements_used([root], scan)).node(ROOT, "", ROOT, Place(scan.root, 1))


def statements_used(parts: Iterable[Node], scan: Scan) -> list[Binding]:
    """The statements that give these nodes and those below them their values, with the macros in them, in the scan's order."""
    nodes = [node for part in parts for node in part.walk()]
    used = {a.binding.key: a.binding for node in nodes for a in node.arguments.values() if a.binding}
    pending = list(used.values())
    while pending:
        named = [v.name for v in leaves(pending.pop().value) if isinstance(v, Macro)]
        macros = [scan.macros[name] for name in named if name in scan.macros and name not in used]
        used |= {macro.key: macro for macro in macros}
        pending += macros
    return [binding for binding in scan.bindings.values() if binding.key in used]


class _Resolver:
    """Carries what every step needs: the scan, the plugins, the nodes made so far and those in the making."""

    def __init__(self, scan: Scan, plugins: Mapping[str, Callable[..., Any]], mentioning: Iterable[Binding]) -> None:
        self._scan = scan
        self._plugins = {**plugins, ROOT: Experiment}
        self._bindings = scan.bindings
        self._mentioned = {p for b in mentioning if b.parameter for p in _prefixes(b.scope)}
        self._done: dict[str, Node] = {}
        self._open: list[str] = []

    def node(self, selector: str, scope: str, name: str, place: Place) -> Node:
        """The node of a selector that is known, in a scope."""
        if name not in self._done:
            node = Node(scope, selector, name, place, self._plugins[selector])
            self._open.append(name)
            for parameter in parameters(node.plugin).values():
                self._argument(node, parameter)
            self._open.pop()
            self._done[name] = node
        return self._done[name]

    def _shortest(self, scope: str, around: str = "") -> str:
        """The longest part of a scope that some binding mentions: the rest changes nothing.

        Within a scope that is mentioned, an empty scope would mean that one; then all of `scope` is kept.
        """
        mentioned = max((p for p in _prefixes(scope) if p in self._mentioned), key=len, default="")
        return mentioned or (scope if around and self._shortest(around) else "")

    def _argument(self, node: Node, parameter: Parameter) -> None:
        binding = self._effective(node, parameter.name)
        if binding is None:
            node.arguments[parameter.name] = Argument(parameter.default, None)
            if parameter.default is REQUIRED:
                self._missing(node, parameter)
            return
        value = self._value(binding.value, node, node.scope, binding)
        fitted = self._judge(node, binding, value, parameter)
        node.sound &= not any(v is UNREADABLE for v in leaves(value))
        node.arguments[parameter.name] = Argument(fitted.value, binding)

    def _missing(self, node: Node, parameter: Parameter) -> None:
        node.sound = False
        if self._scan.readable:
            wanted = f"add {node.name}.{parameter.name} = {asks_for(parameter.annotation)}"
            self._scan.report(node.place, f"{node.name} needs {parameter.name}: {wanted}")

    def judge_unused(self, root: Node) -> None:
        """Check the literals of bindings that no node uses, too: they would bite when the reference comes back."""
        used = {a.binding.key for node in root.walk() for a in node.arguments.values() if a.binding}
        for key, binding in self._bindings.items():
            parameter = self._parameter(binding)
            if (
                key not in used
                and parameter
                and not any(isinstance(v, Reference | Macro) for v in leaves(binding.value))
            ):
                self._judge(root, binding, binding.value, parameter)

    def _parameter(self, binding: Binding) -> Parameter | None:
        plugin = self._plugins.get(binding.selector)
        return parameters(plugin).get(binding.parameter) if plugin and binding.parameter else None

    def _judge(self, node: Node, binding: Binding, value: Any, parameter: Parameter) -> Fit:
        fitted = fit(value, parameter.annotation)
        for problem in fitted.problems:
            self._fail(node, binding.place, f"{binding.key} {_through(binding)}{problem}")
        return fitted

    def _effective(self, node: Node, parameter: str) -> Binding | None:
        """The binding in the innermost scope that has one, as gin chooses it."""
        keys = [f"{scoped(scope, node.selector)}.{parameter}" for scope in _prefixes(node.scope)]
        return next((self._bindings[key] for key in reversed(keys) if key in self._bindings), None)

    def _value(self, value: Any, node: Node, scope: str, binding: Binding) -> Any:
        """The value with macros replaced and called references as Made; UNREADABLE where something is wrong."""
        if isinstance(value, dict):
            return {
                self._value(k, node, scope, binding): self._value(v, node, scope, binding) for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return type(value)(self._value(v, node, scope, binding) for v in value)
        if isinstance(value, Macro):
            return self._macro(value, node, binding)
        if isinstance(value, Reference):
            return self._reference(value, node, scope, binding)
        return value

    def _macro(self, macro: Macro, node: Node, binding: Binding) -> Any:
        if macro.name == _GIN_REQUIRED:
            self._fail(
                node,
                binding.place,
                f"{binding.key} is required: give it a value here, or with --set {binding.key}=VALUE",
            )
            return UNREADABLE
        definition = self._bindings.get(macro.name)
        if definition is None or definition.parameter:
            return UNREADABLE  # reported by check, which looks at all macros
        if str(macro) in self._open:
            self._fail(node, definition.place, f"macro {macro} is defined by itself: give it a value")
            return UNREADABLE
        self._open.append(str(macro))
        value = self._value(definition.value, node, macro.name, binding)
        self._open.pop()
        return value

    def _reference(self, reference: Reference, node: Node, scope: str, binding: Binding) -> Any:
        if reference.selector not in self._plugins or reference.selector == ROOT:
            return UNREADABLE
        if not reference.called:
            return reference
        inner = reference.scope or scope
        shown = Reference(self._shortest(inner, around=node.scope), reference.selector, called=True)
        name = scoped(shown.scope, shown.selector)
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            self._fail(node, binding.place, f"{binding.key} refers to itself: {chain}. Refer to another plugin.")
            return UNREADABLE
        child = self.node(reference.selector, inner, name, binding.place)
        node.children.append(child)
        node.sound &= child.sound
        return Made(shown, produces(child.plugin))

    def _fail(self, node: Node, place: Place, message: str) -> None:
        node.sound = False
        self._scan.report(place, message)


def _prefixes(scope: str) -> list[str]:
    """A scope and those around it, outermost first: "", "a", "a/b"."""
    parts = scope.split("/") if scope else []
    return ["/".join(parts[:i]) for i in range(len(parts) + 1)]


def _through(binding: Binding) -> str:
    """Names the macro that a value comes from."""
    return f"(from {binding.value}) " if isinstance(binding.value, Macro) else ""
