"""A program in another floating point dtype than the one it was trained or evaluated in."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from assay.exported import FLOATS, Program, Signature, Tensor
from assay_export.onnx.rewrite import DTYPES, rewritten


@dataclasses.dataclass(frozen=True, eq=False)  # jax wants functions that can be hashed
class Retyped:
    """The function with all floating point arithmetic in one dtype; `stored`: path of a weight -> the dtype that the function takes."""

    function: Any
    stored: Mapping[str, str]
    signature: Signature
    dtype: str

    def __call__(self, weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """weights, inputs: in the new dtype."""
        tensors = self.signature.inputs
        taken = (
            {path: jax.ShapeDtypeStruct(w.shape, jnp.dtype(self.stored[path])) for path, w in weights.items()},
            {name: jax.ShapeDtypeStruct(x.shape, jnp.dtype(tensors[name].dtype)) for name, x in inputs.items()},
        )
        token = DTYPES.set({jnp.dtype(name): jnp.dtype(self.dtype) for name in FLOATS if name != self.dtype})
        try:
            closed, shape = jax.make_jaxpr(self.function, return_shape=True)(*taken)
            found = rewritten(closed)(*jax.tree.leaves((weights, inputs)))
        finally:
            DTYPES.reset(token)
        named: dict[str, Any] = jax.tree.unflatten(jax.tree.structure(shape), found)
        return named


def in_dtype(program: Program, stored: Mapping[str, str], dtype: str) -> Program:
    """The program with floating point weights and inputs in `dtype`; itself where they are already. stored: dtypes of its weights."""
    used = {*stored.values(), *(t.dtype for t in program.signature.inputs.values())}
    if not {name for name in used if name in FLOATS} - {dtype}:
        return program
    inputs = {name: retyped_tensor(tensor, dtype) for name, tensor in program.signature.inputs.items()}
    signature = dataclasses.replace(program.signature, inputs=inputs)
    return Program(program.name, Retyped(program.function, stored, program.signature, dtype), signature)


def retyped_tensor(tensor: Tensor, dtype: str) -> Tensor:
    """The tensor in `dtype` where it is of floating point numbers."""
    return dataclasses.replace(tensor, dtype=dtype) if tensor.dtype in FLOATS else tensor
