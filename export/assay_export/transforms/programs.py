"""Programs that make the weights that they were written for of the weights that are stored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assay.exported import Exported, Program

Restore = Callable[[dict[str, Any]], dict[str, Any]]


def restored_by(source: Exported, restore: Restore, weights: Mapping[str, Any], notes: Sequence[str] = ()) -> Exported:
    """`source` with `weights`, whose programs first do `restore(weights)`, traced with them."""
    return dataclasses.replace(
        source,
        programs=[_restoring(program, restore) for program in source.programs],
        weights=weights,
        notes=[*source.notes, *notes],
        restore=lambda found: restore(dict(found)),
    )


def _restoring(program: Program, restore: Restore) -> Program:
    def function(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        return program.function(restore(dict(weights)), inputs)

    return dataclasses.replace(program, function=function)
