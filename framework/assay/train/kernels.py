"""Which kernels a dispatch runs: written down as they are chosen, found again in the compiled program, and compared."""

from collections.abc import Callable
from typing import Any

from assay.errors import RunError
from assay_kernels import Choice, audit, disagreements, made_before, recording


class Kernels:
    """Compiles the dispatches of a session, and keeps what was chosen in them. report: takes a line for people."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.choices: list[Choice] = []
        self._report = report

    def compiled(self, jitted: Any, *arguments: Any) -> Any:
        """The compiled program of a function under jax.jit, for arguments like these.

        A line is reported for each op and implementation that is new. Raises RunError where the program holds other implementations
        than those that were chosen.
        """
        with recording() as chosen:
            program = jitted.lower(*arguments).compile()
        found = audit(program)
        chosen += made_before(found, chosen)
        wrong = disagreements(chosen, found)
        if wrong:
            raise RunError(
                f"the compiled step has other kernels than those that were chosen: {'; '.join(wrong)}. An op must compute what it returns "
                "inside the implementation that it chose; whoever registered it can mend this"
            )
        for choice in chosen:
            self._add(choice)
        return program

    def _add(self, choice: Choice) -> None:
        if (choice.op, choice.implementation) not in {(c.op, c.implementation) for c in self.choices}:
            self._report(f"kernel      {choice}")
        if choice not in self.choices:
            self.choices.append(choice)
