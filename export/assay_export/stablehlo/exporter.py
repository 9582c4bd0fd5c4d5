"""StableHLO by way of jax.export: programs with dynamic shapes for jax, and modules of fixed shapes for runtimes without them."""

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import export

from assay.errors import ExportError
from assay.exported import Exported, Program, Written
from assay_export.symbolic import at_sizes, symbols

Platform = Literal["cpu", "cuda", "tpu"]
PATHS = "jax_hlo_source_file_canonicalization_regex"
MONTHS_READ = 6
"""jax reads what it wrote for so long (docs.jax.dev, "Exporting and serializing": compatibility guarantees)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableHLO:
    """Programs in jax.export's format, for jax of the next six months, and static modules in StableHLO's portable bytecode.

    platforms: those that the programs run on; one file for all where the operations allow it, else one for each.
    buckets: sizes of the dims for which static modules are written; dims left out are at their bounds. Of the cpu only.
    """

    platforms: Sequence[Platform] = ("cpu", "cuda")
    buckets: Sequence[Mapping[str, int]] = dataclasses.field(default_factory=lambda: [{"batch": 1}])

    def __post_init__(self) -> None:
        """Raise ValueError without a platform."""
        if not self.platforms:
            raise ValueError("platforms: name at least one, such as 'cpu'")

    def write(self, source: Exported, directory: Path) -> Written:
        """`PROGRAM.jaxexport`, or `PROGRAM.PLATFORM.jaxexport`, and `static/PROGRAM-SIZES.mlirbc`. Raises ExportError."""
        from jax import version

        known = {"batch", *source.dims}  # that of one row may be fixed
        unknown = next((name for bucket in self.buckets for name in bucket if name not in known), None)
        if unknown is not None:
            raise ExportError(f"bucket {unknown}: sizes of this model are {', '.join(source.dims) or 'all fixed'}")
        (directory / "static").mkdir()
        programs = {program.name: self._written(program, source, directory) for program in source.programs}
        expires = datetime.date.today() + datetime.timedelta(days=MONTHS_READ * 30)
        facts = {
            "programs": programs,
            "jax": version.__version__,
            "calling_convention": export.maximum_supported_calling_convention_version,
            "expires": expires.isoformat(),
        }
        return Written(tuple(programs), facts, (f"jax>={version.__version__}", "safetensors", "flatbuffers"))

    def loader(self) -> Path:
        """Needs jax, safetensors and flatbuffers."""
        return Path(__file__).with_name("loader.py")

    def _written(self, program: Program, source: Exported, directory: Path) -> dict[str, Any]:
        weights = {path: jax.ShapeDtypeStruct(w.shape, jnp.dtype(w.dtype)) for path, w in source.weights.items()}
        dynamic = symbols(program.signature, source.dims)
        files: dict[str, str] = {}
        for platforms, exported in _exports(program, weights, dynamic, self.platforms).items():
            name = f"{program.name}{'' if len(platforms) > 1 else '.' + platforms[0]}.jaxexport"
            (directory / name).write_bytes(exported.serialize())
            files |= dict.fromkeys(platforms, name)
        static: dict[str, Any] = {}
        for bucket in self.buckets:
            sizes = _sizes(program, source, bucket)
            label = "-".join([program.name, *(f"{n}{size}" for n, size in sizes.items())])
            module = _export(program, weights, at_sizes(program.signature, sizes), ["cpu"])
            (directory / "static" / f"{label}.mlirbc").write_bytes(module.mlir_module_serialized)
            static[f"static/{label}.mlirbc"] = {"sizes": sizes, "arguments": _arguments(program, module, weights)}
        return {"platforms": files, "weights": sorted(weights), "static": static}


def _exports(
    program: Program, weights: Any, inputs: Any, platforms: Sequence[str]
) -> dict[tuple[str, ...], export.Exported]:
    """One module for all platforms, or one for each of those that can have one."""
    try:
        return {tuple(platforms): _export(program, weights, inputs, platforms)}
    except ExportError:
        if len(platforms) == 1:
            raise
    found, refusals = dict[tuple[str, ...], export.Exported](), list[ExportError]()
    for platform in platforms:
        try:
            found[(platform,)] = _export(program, weights, inputs, [platform])
        except ExportError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _export(program: Program, weights: Any, inputs: Any, platforms: Sequence[str]) -> export.Exported:
    """f(weights, inputs, donated inputs), traced and lowered. Raises ExportError naming the operation in the way, as jax tells it."""

    def function(weights: Any, kept: Any, donated: Any) -> Any:
        return program.function(weights, {**kept, **donated})

    donated = {name: inputs[name] for name in program.signature.donated}
    kept = {name: shape for name, shape in inputs.items() if name not in donated}
    try:
        with _without_paths():
            found = export.export(jax.jit(function, donate_argnums=2), platforms=platforms)(weights, kept, donated)
        found.serialize()
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise ExportError(
            f"{program.name} cannot be exported to StableHLO for {', '.join(platforms)}: {type(error).__name__}: {reason}"
        ) from error
    return found


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Within the context jax notes of each operation's source the file's name alone, and not where it lies on this machine."""
    before = getattr(jax.config, PATHS)
    jax.config.update(PATHS, r".*/")
    try:
        yield
    finally:
        jax.config.update(PATHS, before)


def _sizes(program: Program, source: Exported, bucket: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a program's dims in a bucket. Raises ExportError for one out of bounds."""
    sizes = {name: bucket.get(name, source.dims[name].high) for name in program.signature.dims}
    for name, size in sizes.items():
        if not source.dims[name].low <= size <= source.dims[name].high:
            raise ExportError(
                f"bucket {name} = {size}: must be from {source.dims[name].low} to {source.dims[name].high}"
            )
    return sizes


def _arguments(program: Program, module: export.Exported, weights: Any) -> list[str]:
    """The names of the module's arguments, in order: weights by path, inputs, donated inputs."""
    donated = program.signature.donated
    kept = [name for name in program.signature.inputs if name not in donated]
    names = [f"weights/{path}" for path in sorted(weights)] + sorted(kept) + sorted(donated)
    return [names[index] for index in module.module_kept_var_idx]
