"""What ran, recorded twice: as it is chosen, while jax traces, and as it is found in the compiled program."""

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from assay_kernels.target import Target
from assay_kernels.tuning import Configured

ATTRIBUTE = "assay_kernel"
_recording: contextvars.ContextVar[tuple[list["Choice"], ...]] = contextvars.ContextVar("assay_kernels", default=())
_made: dict[tuple[str, str], "Choice"] = {}  # the last of each, in this process


@dataclasses.dataclass(frozen=True)
class Choice:
    """One call of an op. refused: the implementations of higher priority and why each was not chosen. arrays: "bfloat16[8,64]", …

    configs: what the kernels were configured with, and where that came from. derivative: the implementation that computes instead, values
    too, where the call is differentiated; "" where it is this one.
    """

    op: str
    implementation: str
    how: str
    refused: tuple[tuple[str, str], ...]
    arrays: tuple[str, ...]
    target: Target
    configs: tuple[Configured, ...] = ()
    derivative: str = ""

    def __str__(self) -> str:
        """One line for people."""
        why = "".join(f"; not {name}: {reason}" for name, reason in self.refused)
        how = "".join(f"; {c.config} ({c.source})" for c in self.configs)
        how += f"; {self.derivative} where it is differentiated" if self.derivative else ""
        return f"{self.op}: {self.implementation} ({self.how}) for {self.target}, {' '.join(self.arrays)}{how}{why}"

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a run's record."""
        return dataclasses.asdict(self) | {"refused": dict(self.refused), "target": str(self.target)}


@dataclasses.dataclass(frozen=True)
class Audit:
    """What a compiled program holds. implementations: (op, implementation). custom_calls: targets of custom calls, as XLA names them."""

    implementations: frozenset[tuple[str, str]]
    custom_calls: frozenset[str]


@contextlib.contextmanager
def recording() -> Iterator[list[Choice]]:
    """Collect the choices made inside, in order, each once. A function that jit has traced already makes none; see `made_before`."""
    found: list[Choice] = []
    token = _recording.set((*_recording.get(), found))
    try:
        yield found
    finally:
        _recording.reset(token)


def note(choice: Choice) -> None:
    """Add a choice to the records that are open."""
    _made[choice.op, choice.implementation] = choice
    for found in _recording.get():
        if choice not in found:
            found.append(choice)


def made_before(found: Audit, choices: Sequence[Choice]) -> list[Choice]:
    """The choices that a program holds, `choices` lack, and this process made earlier: jit reuses the trace of an inner function."""
    lacking = found.implementations - {(choice.op, choice.implementation) for choice in choices}
    return [_made[pair] for pair in sorted(lacking) if pair in _made]


def audit(compiled: Any) -> Audit:
    """What a program holds, from its optimised HLO. compiled: what jit's `lower(...).compile()` gives, or that text itself."""
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    names = re.findall(rf'{ATTRIBUTE}\s*=\s*"([\w-]+)\.([\w-]+)"', text)
    return Audit(frozenset(names), frozenset(re.findall(r'custom_call_target="([^"]+)"', text)))


def disagreements(choices: Sequence[Choice], found: Audit) -> list[str]:
    """In words, what was chosen and is not in the program, and what is in the program and was not chosen."""
    chosen = {(choice.op, choice.implementation) for choice in choices}
    lost = [f"{op}: {name} was chosen, but is not in the program" for op, name in chosen - found.implementations]
    strange = [f"{op}: {name} is in the program, but was not chosen" for op, name in found.implementations - chosen]
    return sorted(lost + strange)
