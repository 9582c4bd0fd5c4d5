"""Loads the ONNX programs of an artifact: needs onnxruntime and numpy."""

from typing import Any


def load(artifact: Any, manifest: Any, facts: Any) -> Any:
    """(program, {name: array}) -> {name: numpy array}. Arrays that the signature calls donated are used up by the call: on a CPU
    the program writes into them, where it can, and gives them back.
    """
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
        found, about = sessions[name], facts["programs"][name]
        outputs, kept = about["outputs"], set(about.get("in_place", ()))
        feed = {i.name: numpy.asarray(inputs[i.name], dtypes.get(i.type)) for i in found.get_inputs()}
        if not kept or found.get_providers()[0] != "CPUExecutionProvider":
            return {outputs[o.name]: x for o, x in zip(found.get_outputs(), found.run(None, feed), strict=True)}
        feed |= {n: numpy.require(feed[n], requirements=["C", "W"]) for n in kept}
        binding = found.io_binding()
        for n, x in feed.items():
            binding.bind_cpu_input(n, x)
        for o in found.get_outputs():
            place = {}
            if outputs[o.name] in kept:
                x = feed[outputs[o.name]]
                place = {"element_type": x.dtype, "shape": x.shape, "buffer_ptr": x.ctypes.data}
            binding.bind_output(o.name, **place)
        found.run_with_iobinding(binding)
        values = zip(found.get_outputs(), binding.get_outputs(), strict=True)
        return {outputs[o.name]: feed[outputs[o.name]] if outputs[o.name] in kept else v.numpy() for o, v in values}

    return run
