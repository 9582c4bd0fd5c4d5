"""Finds the verb, parses its arguments, runs it, and turns the user's errors into a message and an exit code."""

import argparse
import importlib
import importlib.metadata
import keyword
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from assay import __version__
from assay.errors import AssayError, PluginError, did_you_mean

VERBS = {
    "list": "list the plugins there are, by kind",
    "show": "show a plugin: its parameters, types, defaults and where it comes from",
    "check": "check experiment files, all mistakes at once",
    "config": "show the whole configuration of an experiment, and where each value comes from",
    "plugin": "begin a plugin, and check it against what its kind must do",
    "diff": "compare two experiment files or two runs, value by value",
    "plan": "show shapes, shardings, memory and cost of an experiment without running it",
    "run": "train an experiment",
    "resume": "go on with a run from its last checkpoint",
    "replay": "do one step of a run again, and show what it does to each parameter",
    "evaluate": "evaluate a run's checkpoint",
    "sample": "sample from a run's checkpoint",
    "import": "read a model that another library trained, for fine-tuning",
    "runs": "list the runs there are",
    "ui": "start Aim's web page on the runs there are",
}
"""Verb -> its line in `assay --help`; the verb's code is in the module of that name, beside this one."""

GROUP = "assay.verb"
"""Entry points of verbs in other packages: a module with ABOUT (its line in `assay --help`), HELP, EXAMPLE, add_arguments and run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv's without `argv`) and return its exit code. Errors that are not the user's propagate."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.unraisablehook = _unraisable
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except SystemExit as error:  # argparse has printed its help or its usage message
        return error.code if isinstance(error.code, int) else 2
    except AssayError as error:
        print(f"assay: {error}" if "\n" not in str(error) else str(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("assay: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`head`, `less`) has seen enough; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Python's own report, except for writes of a failed checkpoint that TensorStore ends after Orbax has given up on them.

    The failure itself is raised; each of these would add a traceback of its own above the message.
    """
    if not (found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _run(words: list[str]) -> int:
    parser = _parser()
    if not words:
        parser.print_help()
        return 2
    if words[0].startswith("-"):
        parser.parse_args(words[:1])
    known = {*VERBS, *further()}
    if words[0] not in known:
        parser.error(f"no verb '{words[0]}'.{did_you_mean(words[0], known)} `assay --help` lists them.")
    verb = _load(words[0])
    args = _verb_parser(words[0], verb).parse_args(words[1:])
    return int(verb.run(args))


class _Parser(argparse.ArgumentParser):
    """argparse, with the way to help in its errors."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    verbs = VERBS | {name: _about(name) for name in further()}
    lines = "\n".join(f"  {verb:<9} {help_line}" for verb, help_line in verbs.items())
    parser = _Parser(
        prog="assay",
        usage="assay VERB …",
        description="Experiments from gin files: check, plan, run, compare.",
        epilog=f"verbs:\n{lines}\n\n`assay VERB --help` shows a verb's arguments and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"assay {__version__}")
    return parser


def further() -> dict[str, importlib.metadata.EntryPoint]:
    """The verbs that installed packages add, sorted. None takes the place of one of these here."""
    found = importlib.metadata.entry_points(group=GROUP)
    return {point.name: point for point in sorted(found, key=lambda p: p.name) if point.name not in VERBS}


def _about(verb: str) -> str:
    """Its line; a package that is broken must not keep the others from being listed."""
    try:
        return str(_load(verb).ABOUT)
    except Exception as error:
        return f"(cannot be used: {error})"


def _load(verb: str) -> ModuleType:
    if verb not in VERBS:
        point = further()[verb]
        try:
            return importlib.import_module(point.value)
        except Exception as error:
            origin = point.dist.name if point.dist else "unknown"
            raise PluginError(
                f"verb {verb} ({point.value}, of {origin}) cannot be imported: {type(error).__name__}: {error}; "
                f"update or uninstall {origin}"
            ) from error
    return importlib.import_module(f"assay.cli.{verb}_" if keyword.iskeyword(verb) else f"assay.cli.{verb}")


def _verb_parser(name: str, verb: ModuleType) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"assay {name}",
        description=verb.HELP,
        epilog=f"example:\n  {verb.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    return parser
