"""Compiles a static module of an artifact with IREE and runs it: python iree_runs.py ARTIFACT MODULE INPUTS.npz OUTPUTS.npz."""

import json
import sys
from pathlib import Path

import iree.compiler
import iree.runtime
import numpy as np
from safetensors.numpy import load_file

artifact, module, given, got = (Path(word) for word in sys.argv[1:])
manifest = json.loads((artifact / "manifest.json").read_text())
programs = manifest["formats"]["stablehlo"]["facts"]["programs"]
static = next(p["static"][str(module)] for p in programs.values() if str(module) in p["static"])
weights = {k: v for file in (artifact / "weights").glob("*.safetensors") for k, v in load_file(file).items()}
inputs = dict(np.load(given))
arguments = [
    weights[name.removeprefix("weights/")] if name.startswith("weights/") else inputs[name]
    for name in static["arguments"]
]
compiled = iree.compiler.compile_str(
    (artifact / "stablehlo" / module).read_bytes(), target_backends=["llvm-cpu"], input_type="stablehlo"
)
loaded = iree.runtime.load_vm_flatbuffer(compiled, driver="local-sync")
outputs = loaded.main(*arguments)
outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
np.savez(got, *(np.asarray(x) for x in outputs))
