"""An artifact with its StableHLO programs written anew, from the artifact alone: jax.export's files are read for six months only."""

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
    progress: Callable[[str], None] = verify.ignored,
) -> dict[str, Checked]:
    """Write `out` with the artifact's programs as this jax writes them; what was found. `directory` is not changed.

    transforms: applied to its weights first, in order, each with the text that names it. progress: is given what is being done.
    Raises ExportError where the artifact is damaged, has no StableHLO, or has expired: then `assay export` writes it from its run.
    """
    content = manifest.read(directory)
    if FORMAT not in content["formats"]:
        raise ExportError(
            f"{directory} has {', '.join(content['formats'])}, none of which expires; there is nothing to refresh"
        )
    content = artifact.opened(directory, FORMAT)
    others = [name for name in content["formats"] if name != FORMAT]
    if others:
        report(
            f"{', '.join(others)}: left out, {FORMAT} alone can be written again without the run; the old artifact keeps them"
        )
    examples = stored.stored(directory / artifact.CASES)
    source, kept, effects = of_artifact(again(directory, content), examples, transforms)
    for line in (line for effect in effects for line in effect.lines()):
        report(line)
    changes = [*content.get("transforms", []), *(effect.json() for effect in effects)]
    further = {"tokenizer": content.get("tokenizer"), **({"transforms": changes} if changes else {})}
    with artifact.new(out) as new:
        if content.get("tokenizer"):
            shutil.copytree(directory / "tokenizer", new / "tokenizer")
        written = artifact.fill(new, source, {FORMAT: exporter_of(content, FORMAT)}, further, progress=progress)
        for line in _lost(content, written):
            report(line)
        checked = verify.verify_with(new, written, kept, progress)
        finish(new, written, checked, kept)
    return checked


def again(directory: Path, content: Mapping[str, Any]) -> Exported:
    """What was exported, from the artifact's own programs."""
    held = weights.Weights(directory / "weights")
    programs = []
    for name in content["programs"]:
        function = functools.partial(_called, _read(directory, content, name), content["programs"][name]["donated"])
        programs.append(Program(name, function, manifest.signature_of(content, name)))
    return Exported(
        None,
        DataSpec({}),
        programs,
        manifest.dims_of(content),
        held,
        {},
        content["lineage"],
        content["notes"],
        content.get("dtype", "float32"),
    )


def _called(programs: Mapping[str, export.Exported], donated: Any, weights: Any, inputs: Any) -> dict[str, Any]:
    used = {name: inputs[name] for name in donated}
    arguments = weights, {n: x for n, x in inputs.items() if n not in used}, used
    if len(programs) == 1:
        return dict(next(iter(programs.values())).call(*arguments))
    return dict(jax.lax.platform_dependent(*arguments, **{name: found.call for name, found in programs.items()}))


def _read(directory: Path, content: Mapping[str, Any], program: str) -> dict[str, export.Exported]:
    """The program by platform, or for all of them."""
    facts = content["formats"][FORMAT]["facts"]
    files = facts["programs"][program]["platforms"]
    found = {}
    for platform, file in files.items():
        path = directory / FORMAT / Path(file).name  # of the artifact, whatever the manifest says
        try:
            found[platform] = export.deserialize(bytearray(path.read_bytes()))
        except Exception as error:
            raise ExportError(
                f"jax {jax.__version__} cannot read {path}, which expired on {facts['expires']} at the earliest: {error}; "
                f"`assay export {content['lineage'].get('run')}` writes it again from its run"
            ) from error
        if len(set(files.values())) == 1:
            break
    return found


def _lost(content: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """A line for each program with the platforms that it is not for any more."""
    before, now = (x["formats"][FORMAT]["facts"]["programs"] for x in (content, written))
    lost = {name: sorted(before[name]["platforms"].keys() - now[name]["platforms"].keys()) for name in before}
    return [f"{name} is not for {', '.join(platforms)} any more" for name, platforms in lost.items() if platforms]
