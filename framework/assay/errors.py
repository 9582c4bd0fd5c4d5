"""The errors that a user can cause. Each message says what is wrong, where, with which value, and what to do next."""

import difflib
from collections.abc import Iterable

EXIT_HUNG = 70
"""A session that made no step for too long (EX_SOFTWARE of sysexits.h); the run can be resumed."""

EXIT_REQUEUE = 75
"""A session that was asked to stop, or ran out of time, and saved: start `assay resume` again (EX_TEMPFAIL of sysexits.h)."""

EXIT_INTERRUPTED = 130
"""A session that a person stopped with Ctrl-C; the run can be resumed."""


class AssayError(Exception):
    """Base of every error that is the user's to mend; the command line prints it without a traceback and exits with 1."""


class ConfigError(AssayError):
    """An experiment file is wrong. The message lists every mistake found, one a line, each with file:line."""


class PluginError(AssayError):
    """A plugin is unknown, declared twice, or cannot be imported. The message names its distribution."""


class DataError(AssayError):
    """Data is missing, unreadable, empty, or too small for what was asked."""


class LayoutError(AssayError):
    """Arrays do not fit the mesh: an unknown axis, a size that does not divide, a mesh larger than the devices."""


class RunError(AssayError):
    """A run directory is missing, in use, damaged, or of another format version."""


class CheckpointError(AssayError):
    """A checkpoint is missing, could not be written, or does not fit the experiment."""


class ExportError(AssayError):
    """A model cannot be exported, an artifact is damaged, differs from its model, or was called with what it does not take."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence naming the nearest of `known`, or an empty string when nothing is near.

    >>> did_you_mean("adamv", ["adamw", "sgd"])
    " Did you mean 'adamw'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
