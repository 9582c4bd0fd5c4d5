"""Runs what the exporter wrote; it becomes a part of the artifact, where there may be no Assay."""

from typing import Any


def load(artifact: Any, manifest: Any, facts: Any) -> Any:
    """(program, {name: array}) -> {name: array}."""
    import jax
    from jax import export
    from safetensors.numpy import load_file

    if jax.default_backend() != facts["platform"]:
        raise ValueError(f"the programs are for {facts['platform']}, and this is {jax.default_backend()}")
    weights: dict[str, Any] = {}
    for file in sorted((artifact / "weights").glob("*.safetensors")):
        weights |= jax.device_put(load_file(file))

    def run(program: str, inputs: Any) -> Any:
        blob = (artifact / "my_plugin" / f"{program}.jaxexport").read_bytes()
        wanted = manifest["programs"][program]["inputs"]
        arrays = {name: jax.numpy.asarray(x, wanted[name]["dtype"]) for name, x in inputs.items()}
        return export.deserialize(bytearray(blob)).call(weights, arrays)

    return run
