"""The command line: `assay VERB …`, one module a verb, imported only when that verb is used.

A verb's module has HELP (one line), EXAMPLE, `add_arguments(parser)` and `run(args) -> int`. Exit codes: 0 done, 1 the user's
mistake or an answer of "no", 2 wrong usage, 130 interrupted.
"""

from assay.cli.main import main

__all__ = ["main"]
