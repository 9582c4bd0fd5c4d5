"""Loads the StableHLO programs of an artifact: needs jax, safetensors and flatbuffers (in which jax.export writes)."""

import datetime
from typing import Any


def load(artifact: Any, manifest: Any, facts: Any) -> Any:
    """(program, {name: array}) -> {name: jax array}. Arrays that the signature calls donated are used up by the call."""
    import jax
    from jax import export
    from safetensors import safe_open

    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    weights: dict[str, Any] = {}
    for file in sorted((artifact / "weights").glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - no dict
                weights[name] = jax.device_put(opened.get_tensor(name))
    compiled: dict[str, Any] = {}

    def program(name: str) -> Any:
        files = facts["programs"][name]["platforms"]
        if platform not in files:
            raise ValueError(f"{name} was exported for {', '.join(files)}, and this is {platform}")
        file = (
            artifact / "stablehlo" / files[platform].rpartition("/")[2]
        )  # of the artifact, whatever the manifest says
        try:
            found = export.deserialize(bytearray(file.read_bytes()))
        except Exception as error:
            late = datetime.date.today().isoformat() > facts["expires"]
            why = f"it expired on {facts['expires']}; `assay artifact refresh` writes it anew" if late else error
            raise ValueError(f"jax {jax.__version__} cannot read {files[platform]}: {why}") from error
        return jax.jit(found.call, donate_argnums=2)

    def run(name: str, inputs: Any) -> Any:
        signature = manifest["programs"][name]
        if name not in compiled:
            compiled[name] = program(name)
        arrays = {n: jax.numpy.asarray(x, signature["inputs"][n]["dtype"]) for n, x in inputs.items()}
        donated = {n: arrays.pop(n) for n in signature["donated"]}
        return compiled[name](weights, arrays, donated)

    return run
