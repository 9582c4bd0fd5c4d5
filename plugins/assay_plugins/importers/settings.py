"""config.json: its values, with the type that is expected, and a ConfigError for what Assay cannot represent."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from assay.errors import ConfigError, DataError

FILE = "config.json"
_REQUIRED = object()


class Settings:
    """The values of a config.json. `path` is for messages."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        """A positive whole number; null and absent are the default."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DataError(f"{self.path}: {name} = {value!r}: must be a whole number, at least 1")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A number; null and absent are the default."""
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise DataError(f"{self.path}: {name} = {value!r}: must be a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or False; null and absent are the default."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise DataError(f"{self.path}: {name} = {value!r}: must be true or false")
        return value

    def choice(self, name: str, choices: Mapping[str, str], default: Any = _REQUIRED) -> str:
        """What `choices` has for the value. Raises ConfigError for one that it lacks."""
        value = self._value(name, default)
        if value not in choices:
            raise self.unsupported(name, choices)
        return choices[value]

    def must_be(self, name: str, *allowed: Any) -> None:
        """Raise ConfigError unless the value is one of `allowed`, of which the first is the default."""
        if self.values.get(name, allowed[0]) not in allowed:
            raise self.unsupported(name, [json.dumps(value) for value in allowed])

    def unsupported(self, name: str, choices: Collection[str]) -> ConfigError:
        """The error for a value that Assay cannot represent."""
        value = self.values.get(name)
        return ConfigError(f"{self.path}: {name} = {value!r} cannot be imported; what can: {', '.join(choices)}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None and default is _REQUIRED:
            raise DataError(f"{self.path} does not say {name}; it is needed to import the model")
        return default if value is None else value


def settings_in(directory: Path) -> Settings:
    """The settings of a model's directory. Raises DataError for a file that is missing or no JSON object."""
    path = directory / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; give the directory of a model with {FILE}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is no JSON object; give the directory of a model")
    return Settings(values, path)
