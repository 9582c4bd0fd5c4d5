"""Writes programs in jax.export's format, with dynamic sizes, for the platform that they are exported on."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from assay.errors import ExportError
from assay.exported import Exported, Program, Tensor, Written
from jax import export


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """`PROGRAM.jaxexport` for each program, f(weights, inputs). vjp_order: derivatives that are exported as well."""

    vjp_order: int = 0

    def write(self, source: Exported, directory: Path) -> Written:
        """The programs. Raises ExportError for one that jax cannot export."""
        weights = {path: jax.ShapeDtypeStruct(w.shape, w.dtype) for path, w in source.weights.items()}
        for program in source.programs:
            inputs = _shapes(program, source)
            try:
                found = export.export(jax.jit(program.function))(weights, inputs)
                (directory / f"{program.name}.jaxexport").write_bytes(found.serialize(vjp_order=self.vjp_order))
            except Exception as error:
                raise ExportError(f"{program.name} cannot be exported: {error}") from error
        names = [program.name for program in source.programs]
        return Written(names, {"platform": jax.default_backend()}, ["jax", "safetensors", "flatbuffers"])

    def loader(self) -> Path:
        """Beside this file; it imports nothing of Assay."""
        return Path(__file__).with_name("loader.py")


def _shapes(program: Program, source: Exported) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs, with symbols in the place of dynamic sizes."""
    names = program.signature.dims
    bounds = [f"{name} <= {source.dims[name].high}" for name in names]
    relations = [f"{small} <= {large}" for small, large in program.signature.at_most]
    symbols = export.symbolic_shape(", ".join(names), constraints=[*bounds, *relations]) if names else ()
    sizes: dict[str, Any] = dict(zip(names, symbols, strict=True))
    return {name: _shape(tensor, sizes) for name, tensor in program.signature.inputs.items()}


def _shape(tensor: Tensor, sizes: dict[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tensor.at(sizes), tensor.dtype)
