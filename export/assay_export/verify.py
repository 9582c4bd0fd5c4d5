"""An artifact checked again, without its run: the examples stored in it are computed in a fresh process and compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import ExportError
from assay_export import artifact, manifest, parity, stored
from assay_export.cases import Case
from assay_export.named import exporter_of
from assay_export.parity import Checked, Report


def ignored(text: str) -> None:
    """Shows nothing."""


def verify(directory: Path, content: Mapping[str, Any], progress: Report = ignored) -> dict[str, Checked]:
    """Format -> what was found. content: the manifest's. progress: is given what is being done.

    Raises ExportError where the examples cannot be read.
    """
    try:
        kept = stored.stored(directory / artifact.CASES)
    except Exception as error:
        raise ExportError(f"{directory / artifact.CASES} cannot be read: {error}; {manifest.AGAIN}") from error
    return verify_with(directory, content, kept, progress)


def verify_with(
    directory: Path, content: Mapping[str, Any], kept: Sequence[tuple[Case, np.ndarray]], progress: Report = ignored
) -> dict[str, Checked]:
    """The same with examples from elsewhere."""
    found = {}
    for name, written in content["formats"].items():
        bound = manifest.bound_in(content, name)
        signatures = {program: manifest.signature_of(content, program) for program in written["programs"]}
        playable = [(case, output) for case, output in kept if _programs(case) <= set(written["programs"])]
        found[name] = parity.unchecked(written["requirements"], bound) or parity.again(
            directory, name, exporter_of(content, name), signatures, playable, bound, progress
        )
    return found


def _programs(case: Case) -> set[str]:
    """The programs that a case is played with."""
    return {case.kind} if case.kind in ("forward", "prefill") else {"prefill", "decode"}
