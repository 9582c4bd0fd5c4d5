"""Loads the ONNX programs of an artifact: needs onnxruntime and numpy."""

from typing import Any


def load(artifact: Any, manifest: Any, facts: Any) -> Any:
    """(program, {name: array}) -> {name: numpy array}."""
    import numpy
    import onnxruntime

    dtypes = {
        "tensor(float)": "float32",
        "tensor(float16)": "float16",
        "tensor(int32)": "int32",
        "tensor(int64)": "int64",
    }
    sessions: dict[str, Any] = {}

    def session(name: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        available = onnxruntime.get_available_providers()
        chosen = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
        return onnxruntime.InferenceSession(str(artifact / "onnx" / f"{name}.onnx"), options, providers=chosen)

    def run(name: str, inputs: Any) -> Any:
        if name not in sessions:
            sessions[name] = session(name)
        found = sessions[name]
        feed = {i.name: numpy.asarray(inputs[i.name], dtypes.get(i.type)) for i in found.get_inputs()}
        outputs = facts["programs"][name]["outputs"]
        return {outputs[o.name]: x for o, x in zip(found.get_outputs(), found.run(None, feed), strict=True)}

    return run
