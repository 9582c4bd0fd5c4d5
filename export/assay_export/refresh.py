"""An artifact with its StableHLO programs written anew, from the artifact alone: jax.export's files are read for six months only."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from assay.data.spec import DataSpec
from assay.errors import ExportError
from assay.exported import Exported, Program
from assay.kinds import Transform
from assay_export import artifact, manifest, stored, verify, weights
from assay_export.export import finish
from assay_export.named import exporter_of
from assay_export.parity import Checked
from assay_export.transforms.report import of_artifact

FORMAT = "stablehlo"


def refresh(
    directory: Path,
    out: Path,
    transforms: Sequence[tuple[str, Transform]] = (),
    report: Callable[[str], None] = print,
) -> dict[str, Checked]:
    """Write `out` with the artifact's programs as this jax writes them; what was found. `directory` is not changed.

    transforms: applied to its weights first, in order, each with the text that names it.
    Raises ExportError where the artifact is damaged, has no StableHLO, or has expired: then `assay export` writes it from its run.
    """
    content = artifact.opened(directory)
    if FORMAT not in content["formats"]:
        raise ExportError(
            f"{directory} has {', '.join(content['formats'])}, none of which expires; there is nothing to refresh"
        )
    examples = stored.stored(directory / artifact.CASES)
    source, kept, effects = of_artifact(again(directory, content), examples, transforms)
    for line in (line for effect in effects for line in effect.lines()):
        report(line)
    changes = [*content.get("transforms", []), *map(dataclasses.asdict, effects)]
    further = {"tokenizer": content.get("tokenizer"), **({"transforms": changes} if changes else {})}
    with artifact.new(out) as new:
        if content.get("tokenizer"):
            shutil.copytree(directory / "tokenizer", new / "tokenizer")
        written = artifact.fill(new, source, {FORMAT: exporter_of(content, FORMAT)}, further)
        checked = verify.verify_with(new, written, kept)
        finish(new, written, checked, {case.label: (case, live) for case, live in kept})
    return checked


def again(directory: Path, content: Mapping[str, Any]) -> Exported:
    """What was exported, from the artifact's own programs."""
    held = weights.Weights(directory / "weights")
    programs = []
    for name in content["programs"]:
        function = functools.partial(_called, _read(directory, content, name), content["programs"][name]["donated"])
        programs.append(Program(name, function, manifest.signature_of(content, name)))
    return Exported(
        None, DataSpec({}), programs, manifest.dims_of(content), held, {}, content["lineage"], content["notes"]
    )


def _called(program: export.Exported, donated: Any, weights: Any, inputs: Any) -> dict[str, Any]:
    used = {name: inputs[name] for name in donated}
    return dict(program.call(weights, {n: x for n, x in inputs.items() if n not in used}, used))


def _read(directory: Path, content: Mapping[str, Any], program: str) -> export.Exported:
    facts = content["formats"][FORMAT]["facts"]
    files = facts["programs"][program]["platforms"]
    path = directory / FORMAT / next(iter(files.values()))
    try:
        return export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:
        raise ExportError(
            f"jax {jax.__version__} cannot read {path}, which expired on {facts['expires']} at the earliest: {error}; "
            f"`assay export {content['lineage'].get('run')}` writes it again from its run"
        ) from error
