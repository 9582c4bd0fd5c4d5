"""gin files: read, checked as a whole, bound to plugins, and recorded.

`check` lists every mistake, `load` gives the experiment with its record, `load_text` does so for a recorded text.
"""

from collections.abc import Sequence
from pathlib import Path

from assay.config.bind import build
from assay.config.check import examine
from assay.config.record import Loaded, record
from assay.config.scan import Scan, scan, scan_text
from assay.config.values import Problem
from assay.errors import ConfigError

__all__ = ["Loaded", "Problem", "check", "load", "load_text"]


def check(path: str | Path, overrides: Sequence[str] = ()) -> list[Problem]:
    """Every mistake in the file, by place. Imports the plugins that it names, and makes no array.

    overrides: "KEY=VALUE" each, as for `--set`.
    """
    examined = examine(scan(path), overrides)
    build(examined)
    return examined.scan.sorted_problems()


def load(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """The experiment in the file, built, with its record. Raises ConfigError naming every mistake."""
    return _load(scan(path), overrides)


def load_text(text: str, name: str = "config.gin") -> Loaded:
    """The experiment in a text, such as a run's recorded configuration; `name` stands for the file in messages."""
    return _load(scan_text(text, name), ())


def _load(found: Scan, overrides: Sequence[str]) -> Loaded:
    examined = examine(found, overrides)
    experiment, cause = build(examined)
    if experiment is None:
        raise ConfigError("\n".join(map(str, found.sorted_problems()))) from cause
    return record(examined, experiment)
