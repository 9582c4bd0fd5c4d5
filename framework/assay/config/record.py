"""What a loaded experiment was: as given and flattened, as used, and where each value comes from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from assay.config.check import Examined
from assay.config.fit import Made
from assay.config.resolve import ROOT, Argument, Node, statements_used
from assay.config.syntax import parse_value
from assay.config.values import Binding, plain, text
from assay.errors import ConfigError, did_you_mean
from assay.experiment import Experiment
from assay.registry import Entry


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An experiment and its record.

    path: the file as it was named.
    flat: the configuration as given, with includes resolved, overrides applied and what has no effect left out; `load_text`
        reads it again. operative: every value used, defaults included, under full names; it gives an equal experiment.
    values: by key, such as "model.transformer.layers", as plain data; references as "@model.transformer()".
    plugins: the plugins in use.
    """

    experiment: Experiment
    path: str
    flat: str
    operative: str
    values: dict[str, Any]
    plugins: list[Entry]
    _arguments: Mapping[str, Argument]
    _unused: tuple[Binding, ...]

    def where(self, key: str) -> str:
        """Where the value comes from: "file:line", "--set" or "default". Raises ConfigError for a key that is not in `values`."""
        argument = self._arguments.get(key)
        within_scopes = [a for name, a in self._arguments.items() if name.endswith(f"/{key}")]
        if argument is None and not within_scopes:
            raise ConfigError(f"{self.path}: no value '{key}'.{did_you_mean(key, self._arguments)}")
        return _where(argument or within_scopes[0])

    def lines(self) -> dict[str, str]:
        """By key, the value as a line of gin, in the order of `operative`; a comment where gin cannot write the value."""
        values = {key: written(argument.value) for key, argument in self._arguments.items()}
        return {key: f"{'' if _readable(value) else '# '}{key} = {text(value)}" for key, value in values.items()}

    def unused(self) -> list[str]:
        """Parameters that are bound but that no plugin in use takes, as "file:line: key"."""
        return [f"{binding.place}: {binding.key}" for binding in self._unused]


def record(examined: Examined, experiment: Experiment) -> Loaded:
    """The record of an experiment that was built without a problem."""
    nodes = list(examined.root.walk())
    arguments = {f"{node.name}.{name}": argument for node in nodes for name, argument in node.arguments.items()}
    return Loaded(
        experiment=experiment,
        path=examined.scan.root,
        flat=flat(examined),
        operative=operative(nodes),
        values={key: plain(written(argument.value)) for key, argument in arguments.items()},
        plugins=[examined.entries[s] for s in sorted({node.selector for node in nodes} - {ROOT})],
        _arguments=arguments,
        _unused=_unused(examined, arguments),
    )


def flat(examined: Examined) -> str:
    """The statements that have an effect, one a line, after the file's opening comment."""
    lines = map(statement, statements_used([examined.root], examined.scan))
    return examined.scan.header + "\n".join(lines) + "\n"


def operative(nodes: list[Node]) -> str:
    """Every value that was used, by plugin. A default that gin cannot write is left out: it is the same next time."""
    blocks = []
    for node in nodes:
        values = {name: written(argument.value) for name, argument in node.arguments.items()}
        blocks.append(
            "\n".join(f"{node.name}.{name} = {text(value)}" for name, value in values.items() if _readable(value))
        )
    return "\n\n".join(filter(None, blocks)) + "\n"


def statement(binding: Binding) -> str:
    """The binding as gin text."""
    return f"{binding.key} = {text(binding.value)}"


def written(value: Any) -> Any:
    """The value with plugins as the references that made them."""
    if isinstance(value, Made):
        return value.reference
    if isinstance(value, dict):
        return {written(k): written(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(written(v) for v in value)
    return value


def _readable(value: Any) -> bool:
    """Whether gin reads the value's text back as an equal value."""
    try:
        return bool(parse_value(text(value)) == value)
    except SyntaxError:
        return False


def _where(argument: Argument) -> str:
    if argument.binding is None:
        return "default"
    place = argument.binding.place
    return str(place) if place.line else "--set"


def _unused(examined: Examined, arguments: dict[str, Argument]) -> tuple[Binding, ...]:
    used = {id(argument.binding) for argument in arguments.values()}
    counted = examined.scan.bindings.values()
    return tuple(binding for binding in counted if binding.parameter and id(binding) not in used)
