"""Finds every mistake in an experiment file before anything is built: names, parameters, types, references, macros, scopes.

`examine` is what both `check` and `load` rest on. Only the plugins that the file names are imported.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from assay import registry
from assay.config.fit import accepts_kind, asks_for
from assay.config.overrides import apply
from assay.config.resolve import ROOT, Node, resolve
from assay.config.scan import Scan, ancestors
from assay.config.values import Binding, Place, Reference, leaves
from assay.errors import PluginError, did_you_mean
from assay.experiment import Experiment
from assay.kinds import KINDS
from assay.registry import Entry, parameters

_GIN_REQUIRED = "gin.REQUIRED"


@dataclasses.dataclass
class Examined:
    """A file with what its names mean. `scan.problems` holds every mistake found."""

    scan: Scan
    entries: dict[str, Entry]
    plugins: dict[str, Callable[..., Any]]
    root: Node


def examine(scan: Scan, overrides: Sequence[str] = ()) -> Examined:
    """Apply the overrides ("model.transformer.layers=6"), load the named plugins, and check everything."""
    loader = _Loader(scan)
    loader.load_all()
    apply(scan, overrides, loader.annotations)
    loader.load_all()
    for find in (_duplicates, _keys, _macros, _scopes):
        find(scan, loader.plugins)
    _unreferenced(scan, loader.entries)
    return Examined(scan, loader.entries, loader.plugins, resolve(scan, loader.plugins))


class _Loader:
    """Imports the plugins that a scan names, and reports those that cannot be had, once for each place that names them."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._failed: dict[str, str] = {}
        self._broken: dict[str, Place] = {}
        self.entries: dict[str, Entry] = {}
        self.plugins: dict[str, Callable[..., Any]] = {}

    def load_all(self) -> None:
        """Load every selector in a binding or a reference that is not loaded yet."""
        for binding in self._scan.statements:
            if binding.parameter and binding.selector != ROOT:
                self._load(binding.selector, binding.header or binding.place, binding)
            for reference in leaves(binding.value):
                if isinstance(reference, Reference):
                    self._load(reference.selector, binding.place, reference)

    def annotations(self, selector: str, parameter: str) -> Any:
        """The parameter's annotation, or None when there is no such plugin or parameter."""
        plugin = Experiment if selector == ROOT else self.plugins.get(selector)
        if plugin is None and "." in selector:
            self._load(selector, Place(""), None)
            plugin = self.plugins.get(selector)
        found = parameters(plugin).get(parameter) if plugin else None
        return found.annotation if found else None

    def _load(self, selector: str, place: Place, named_by: Binding | Reference | None) -> None:
        if selector not in self.plugins and selector not in self._failed:
            self._try(selector, named_by)
        if selector in self._failed and named_by is not None:
            broken = selector in self.entries  # there is nothing to mend in the file: saying it once is enough
            if not broken or self._broken.setdefault(selector, place) == place:
                self._scan.report(place, self._failed[selector])

    def _try(self, selector: str, named_by: Binding | Reference | None) -> None:
        kind, _, name = selector.partition(".")
        if message := _malformed(selector, named_by):
            self._failed[selector] = message
            return
        try:
            self.entries[selector] = registry.find(kind, name)
            self.plugins[selector] = registry.load(kind, name)
        except PluginError as error:
            self._failed[selector] = str(error)


def _malformed(selector: str, named_by: Binding | Reference | None) -> str:
    """What is wrong with a name that is not kind.name, or an empty string."""
    kinds = [k.name for k in KINDS]
    kind, _, name = selector.partition(".")
    if isinstance(named_by, Reference) and selector == ROOT:
        return "the experiment is the root and cannot be referred to: refer to a plugin, such as @model.NAME()"
    if kind == ROOT:
        field = name.partition(".")[0]
        return f"'{selector}' is not a plugin: set experiment.{field} = @KIND.NAME() and bind KIND.NAME.PARAMETER"
    if kind in kinds and name and "." not in name:
        return ""
    if kind in kinds and not name and isinstance(named_by, Binding):
        plugin = named_by.parameter if any(e.name == named_by.parameter for e in registry.entries(kind)) else "NAME"
        return f"'{named_by.key}' names no parameter: write {kind}.{plugin}.PARAMETER = VALUE"
    others = [e.selector for e in registry.entries() if e.name in (selector, selector.rpartition(".")[2])]
    hint = f" Did you mean '{others[0]}'?" if others else did_you_mean(kind, [*kinds, ROOT])
    return f"no plugin '{selector}'.{hint} Plugins are named KIND.NAME; `assay list` shows them."


def _duplicates(scan: Scan, _: Any) -> None:
    """A key bound twice, unless a file changes what a file that it includes has bound before."""
    seen: dict[str, Binding] = {}
    for binding in scan.statements:
        first = seen.get(binding.key)
        allowed = first is not None and _may_change(scan, first.place, binding.place)
        if first is not None and not allowed:
            scan.report(binding.place, f"{binding.key} is already bound, at {first.place}. Remove one of the two.")
        seen[binding.key] = binding


def _may_change(scan: Scan, first: Place, second: Place) -> bool:
    is_override = second.line == 0
    return (is_override and first.line != 0) or second.file in ancestors(scan, first.file)


def _keys(scan: Scan, plugins: dict[str, Callable[..., Any]]) -> None:
    """Parameters that their plugin does not have."""
    for binding in scan.statements:
        plugin = Experiment if binding.selector == ROOT else plugins.get(binding.selector)
        if plugin is None or not binding.parameter:
            continue
        known = parameters(plugin)
        if binding.parameter not in known:
            names = f" Parameters: {', '.join(known)}." if known else " It has none."
            hint = did_you_mean(binding.parameter, known) or names
            scan.report(binding.place, f"{binding.selector} has no parameter '{binding.parameter}'.{hint}")


def _macros(scan: Scan, _: Any) -> None:
    """Macros that are used and not defined, or defined and not used."""
    macros = {b.key: b for b in scan.statements if not b.parameter}
    used = {macro.name for macro, _ in scan.macro_uses()}
    for macro, binding in scan.macro_uses():
        if macro.name not in macros and macro.name != _GIN_REQUIRED:
            hint = did_you_mean(macro.name, [*macros, _GIN_REQUIRED]) or f" Define it: {macro.name} = VALUE."
            scan.report(binding.place, f"macro {macro} is not defined.{hint}")
    for name, binding in macros.items():
        if name not in used and not scan.mentions(name):
            scan.report(binding.place, f"macro '{name}' is never used.{_unused_macro_hint(name, used - set(macros))}")


def _unused_macro_hint(name: str, undefined: Iterable[str]) -> str:
    fields = parameters(Experiment)
    if name in fields:
        return f" Did you mean 'experiment.{name}'?"
    return did_you_mean(name, undefined) or " Remove it, or use it as %" + name + "."


def _scopes(scan: Scan, _: Any) -> None:
    """Scopes that are bound and that no reference enters."""
    entered = {r.scope for r, _ in scan.references() if r.scope}
    reachable = {"/".join(s.split("/")[: i + 1]) for s in entered for i in range(s.count("/") + 1)}
    reachable |= {m.name for m, _ in scan.macro_uses()}  # gin enters the macro's name as a scope
    for binding in scan.statements:
        unknown = binding.parameter and binding.scope and binding.scope not in reachable
        if unknown and not scan.mentions(binding.scope):
            hint = did_you_mean(binding.scope, sorted(entered)) or _scope_hint(binding)
            place = binding.header or binding.place
            scan.report(place, f"scope '{binding.scope}' is bound but never referenced.{hint}")


def _scope_hint(binding: Binding) -> str:
    if binding.selector == ROOT:
        return f" The experiment has no scopes: write {binding.selector}.{binding.parameter}."
    return f" Refer to it: @{binding.scope}/{binding.selector}()."


def _unreferenced(scan: Scan, entries: dict[str, Entry]) -> None:
    """Plugins whose parameters are bound and that nothing refers to."""
    referenced = {r.selector for r, _ in scan.references()}
    for binding in scan.statements:
        if binding.selector in entries and binding.selector not in referenced and not scan.mentions(binding.selector):
            same_kind = sorted(s for s in referenced if s.partition(".")[0] == binding.selector.partition(".")[0])
            hint = did_you_mean(binding.selector, same_kind) or " Refer to it, as in " + _example(binding.selector)
            message = f"nothing refers to {binding.selector}, so binding its parameters has no effect.{hint}"
            scan.report(binding.header or binding.place, message)


def _example(selector: str) -> str:
    """A line that would refer to the plugin: its kind's field of the experiment, where there is one."""
    kind = selector.partition(".")[0]
    fields = (p for p in parameters(Experiment).values() if accepts_kind(p.annotation) == kind)
    key, wanted = next(((f"experiment.{p.name}", asks_for(p.annotation)) for p in fields), ("KEY", f"@{kind}.NAME()"))
    return f"{key} = {wanted.replace(f'{kind}.NAME', selector)}, or remove it."
