"""Entry points of installed distributions as a catalogue that lists without importing and imports only what is named.

The environment variable ASSAY_PLUGINS, when set, is an allowlist: comma-separated distribution names and patterns of
`kind.name` (`ASSAY_PLUGINS="assay,metric.*"`). Everything else is treated as not installed.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from assay import __version__
from assay.errors import PluginError, did_you_mean
from assay.kinds import KINDS
from assay.registry.contract import parameters

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TARGET = re.compile(r"\w+(\.\w+)*\s*:\s*\w+(\.\w+)*")
_TEMPORARY = "(temporary)"
_temporary: dict[tuple[str, str], Any] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One plugin that a distribution offers. `target` is "module:attribute"; `problem` says why it cannot be used, if so.

    assay: the versions of Assay that its distribution asks for and that this one is not, such as "assay>=2"; mostly none.
    """

    kind: str
    name: str
    target: str
    distribution: str
    version: str
    assay: str = ""
    problem: str = ""

    @property
    def selector(self) -> str:
        """The name in experiment files, such as "model.transformer"."""
        return f"{self.kind}.{self.name}"

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}".strip()


def entries(kind: str | None = None) -> list[Entry]:
    """Every plugin, or those of one kind, sorted by kind and name. Imports none of them.

    Raises PluginError when there is no such kind.
    """
    kinds = [k.name for k in KINDS]
    if kind is not None and kind not in kinds:
        raise PluginError(f"no plugin kind '{kind}'.{did_you_mean(kind, kinds)} Kinds: {', '.join(kinds)}.")
    temporary_ones = [_temporary_entry(*key, obj) for key, obj in _temporary.items()]
    installed = [e for e in _installed(tuple(sys.path)) if (e.kind, e.name) not in _temporary and _allowed(e)]
    found = [_judged(e, installed) for e in [*installed, *temporary_ones] if kind in (None, e.kind)]
    return sorted(found, key=lambda e: (kinds.index(e.kind), e.name, e.distribution))


def find(kind: str, name: str) -> Entry:
    """The entry `kind.name`. Imports nothing.

    Raises PluginError when there is none, when two distributions declare it, when its name or its target is not valid, and
    when its distribution was made for another version of Assay.
    """
    known = entries(kind)
    entry = next((e for e in known if e.name == name), None)
    if entry is None:
        raise PluginError(f"no plugin '{kind}.{name}'.{_hint(kind, name, known)}")
    if entry.problem:
        raise PluginError(f"{entry.selector}: {entry.problem}")
    return entry


def load(kind: str, name: str) -> Any:
    """The plugin itself, a class or function; its module is imported now.

    Raises PluginError as `find` does, when the import fails (chained to its cause), and when the object's signature is not
    that of a plugin (see assay.registry.contract).
    """
    entry = find(kind, name)
    obj = _temporary[kind, name] if (kind, name) in _temporary else _import(entry)
    try:
        parameters(obj)
    except PluginError as error:
        raise PluginError(f"{entry.selector} ({entry.target}, of {entry.origin}): {error}") from error.__cause__
    return obj


@contextlib.contextmanager
def temporary(kind: str, name: str, obj: Any) -> Iterator[Any]:
    """Offer `obj` as `kind.name` within the context, instead of an installed plugin of that name. For tests and notebooks.

    Raises PluginError when there is no such kind or the name is not valid.
    """
    entries(kind)
    if problem := _name_problem(name):
        raise PluginError(f"{kind}.{name}: {problem}")
    missing = object()
    before = _temporary.get((kind, name), missing)
    _temporary[kind, name] = obj
    try:
        yield obj
    finally:
        if before is missing:
            del _temporary[kind, name]
        else:
            _temporary[kind, name] = before


@functools.lru_cache(maxsize=4)
def _installed(path: tuple[str, ...]) -> Sequence[Entry]:
    """Everything that distributions on `path` declare. Reading metadata takes milliseconds, so once for each sys.path.

    `entry_points` takes each distribution once, however often its metadata lies on the path.
    """
    groups = {kind.group: kind.name for kind in KINDS}
    every = importlib.metadata.entry_points()
    points = [point for group in groups for point in every.select(group=group)]
    return [
        Entry(
            kind=groups[p.group],
            name=p.name,
            target=p.value,
            distribution=p.dist.name if p.dist else "(unknown)",
            version=p.dist.version if p.dist else "",
            assay=_unmet(p.dist.requires or ()) if p.dist else "",
        )
        for p in points
    ]


def _unmet(requires: Sequence[str]) -> str:
    """The first of a distribution's requirements that is about Assay and that this version does not meet, or nothing."""
    for line in requires:
        if not line.lower().startswith("assay"):
            continue
        with contextlib.suppress(InvalidRequirement):
            found = Requirement(line)
            applies = found.marker is None or found.marker.evaluate({"extra": ""})
            if (
                found.name.lower() == "assay"
                and applies
                and not found.specifier.contains(__version__, prereleases=True)
            ):
                return f"assay{found.specifier}"
    return ""


def _judged(entry: Entry, among: Sequence[Entry]) -> Entry:
    """The entry with its problem, if it has one."""
    problems = (_name_problem(entry.name), _target_problem(entry), _version_problem(entry))
    return dataclasses.replace(entry, problem=next(filter(None, problems), "") or _duplicate_problem(entry, among))


def _name_problem(name: str) -> str:
    if _NAME.fullmatch(name):
        return ""
    return (
        f"the name '{name}' is not valid; a plugin's name is a lower-case letter, then lower-case letters, digits and _"
    )


def _target_problem(entry: Entry) -> str:
    if entry.distribution == _TEMPORARY or _TARGET.fullmatch(entry.target):
        return ""
    return (
        f"its entry point '{entry.target}', of {entry.origin}, is not 'module:attribute'; correct it in the package's "
        f"pyproject.toml, or update or uninstall {entry.distribution}"
    )


def _version_problem(entry: Entry) -> str:
    if not entry.assay:
        return ""
    return (
        f"{entry.origin} was made for another Assay: it requires {entry.assay}, and Assay {__version__} is installed; install "
        f"a version of {entry.distribution} made for Assay {__version__}, or `pip install '{entry.assay}'`"
    )


def _duplicate_problem(entry: Entry, found: Sequence[Entry]) -> str:
    origins = sorted({e.origin for e in found if (e.kind, e.name) == (entry.kind, entry.name)})
    if len(origins) < 2:
        return ""
    return f"declared by {' and by '.join(origins)}; uninstall one of them, or choose one with the environment variable ASSAY_PLUGINS"


def _allowed(entry: Entry) -> bool:
    """Whether ASSAY_PLUGINS, when set, names the entry or its distribution."""
    setting = os.environ.get("ASSAY_PLUGINS")
    if setting is None:
        return True
    patterns = [word.strip() for word in setting.split(",")]
    return canonicalize_name(entry.distribution) in map(canonicalize_name, patterns) or any(
        fnmatch.fnmatchcase(entry.selector, pattern) for pattern in patterns
    )


def _hint(kind: str, name: str, known: Sequence[Entry]) -> str:
    """What may have been meant, and what there is."""
    hidden = [e for e in _installed(tuple(sys.path)) if (e.kind, e.name) == (kind, name)]
    if hidden:
        return f" {hidden[0].origin} has it, but ASSAY_PLUGINS does not allow it."
    others = [e.selector for e in entries() if e.name == name]
    if others:
        return f" Did you mean '{others[0]}'?"
    near = did_you_mean(name, [e.name for e in known])
    return near.replace("'", f"'{kind}.", 1) or (
        f" Known: {', '.join(e.name for e in known)}." if known else f" No {kind} is installed."
    )


def _import(entry: Entry) -> Any:
    point = importlib.metadata.EntryPoint(name=entry.name, value=entry.target, group=f"assay.{entry.kind}")
    try:
        return point.load()
    except Exception as error:
        raise PluginError(
            f"{entry.selector} ({entry.target}, of {entry.origin}) cannot be imported: {type(error).__name__}: {error}."
            f"{_advice(entry, error)}, or update or uninstall {entry.distribution}."
        ) from error


def _advice(entry: Entry, error: Exception) -> str:
    """What to do about a failed import: a wrong entry point is mended otherwise than a module that does not work."""
    module, attribute = (part.strip() for part in entry.target.split(":"))
    loaded = sys.modules.get(module)
    if loaded is not None and isinstance(error, AttributeError):
        return f"{did_you_mean(attribute, vars(loaded))} Correct the entry point in the package's pyproject.toml"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return " Correct the module in the entry point of the package's pyproject.toml"
    if isinstance(error, ImportError):
        return " Install what it needs"
    return f" Correct {module}"


def _temporary_entry(kind: str, name: str, obj: Any) -> Entry:
    target = f"{getattr(obj, '__module__', '?')}:{getattr(obj, '__qualname__', repr(obj))}"
    return Entry(kind=kind, name=name, target=target, distribution=_TEMPORARY, version="")
