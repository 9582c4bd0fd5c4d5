"""The conformance kit of transforms."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ExportError
from assay.exported import Dim, Exported, Program, Signature, Tensor, as_stored, bound_of
from assay.kinds import Transform
from assay.testing.kit import Kit, check, skip

STORED = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
INPUTS, HIDDEN, OUTPUTS, ROWS = 256, 128, 8, 3


class TransformKit(Kit):
    """Checks of a transform plugin. source(): what is transformed; by default a perceptron of 256 inputs, without a model plugin."""

    kind = "transform"

    def plugin(self) -> Transform:
        """The transform to check."""
        return super().plugin()

    def source(self) -> Exported:
        """What the plugin is for. The same each time."""
        return _perceptron()

    @check
    def test_programs_keep_their_names_and_signatures(self) -> None:
        """Whoever called the programs before calls them as before, and what they return has the same shapes and dtypes."""
        source, found = self.source(), self._applied()
        before, after = ({p.name: p.signature for p in x.programs} for x in (source, found))
        assert after == before, f"the programs were {before}, and are {after}"
        one, two = (_called(x) for x in (source, found))
        assert two.keys() == one.keys(), f"forward returned {', '.join(one)}, and returns {', '.join(two)}"
        for name, array in one.items():
            assert two[name].shape == array.shape, f"{name} had shape {array.shape}, and has {two[name].shape}"
            assert two[name].dtype == array.dtype, f"{name} was {array.dtype}, and is {two[name].dtype}"
            assert np.isfinite(two[name]).all(), f"{name} is not finite"

    @check
    def test_the_source_stays_as_it_was(self) -> None:
        """Neither the weights nor the programs that were given change."""
        source = self.source()
        kept, output = {path: np.array(w) for path, w in source.weights.items()}, _called(source)
        self._applied(source)
        assert kept.keys() == source.weights.keys(), "the source has other weights now"
        changed = [path for path, w in kept.items() if not np.array_equal(w, source.weights[path])]
        assert not changed, f"the source's own {', '.join(changed)} changed"
        assert all(np.array_equal(x, output[name]) for name, x in _called(source).items()), "its programs changed"

    @check
    def test_weights_can_be_stored(self) -> None:
        """Every weight is a numpy array of a dtype that safetensors holds."""
        for path, weight in self._applied().weights.items():
            assert isinstance(weight, np.ndarray), f"{path} is {type(weight).__name__}, no numpy array"
            assert str(weight.dtype) in STORED, f"{path} is {weight.dtype}; what can be stored: {', '.join(STORED)}"

    @check
    def test_programs_compute_with_the_weights_that_they_are_given(self) -> None:
        """Each program reads its weights from its first argument: zeros there give another output."""
        found = self._applied()
        zeros = dataclasses.replace(found, weights={path: np.zeros_like(w) for path, w in found.weights.items()})
        assert not _same(_called(found), _called(zeros)), "forward returns the same whatever its weights are"

    @check
    def test_programs_can_be_traced_without_values_for_any_batch(self) -> None:
        """forward can be exported: with weights of which only shapes are known, and a symbolic batch."""
        found = self._applied()
        program = found.program("forward")
        scope = export.SymbolicScope()
        dims: Any = {name: export.symbolic_shape(name, scope=scope)[0] for name in program.signature.dims}
        inputs = {
            name: jax.ShapeDtypeStruct(tensor.at(dims), tensor.dtype)
            for name, tensor in program.signature.inputs.items()
        }
        weights = {path: jax.ShapeDtypeStruct(w.shape, w.dtype) for path, w in found.weights.items()}
        export.export(jax.jit(program.function))(weights, inputs)

    @check
    def test_it_is_repeatable(self) -> None:
        """Applied twice it gives the same bits."""
        one, two = self._applied().weights, self._applied().weights
        assert one.keys() == two.keys(), "two applications gave other weights"
        differ = [path for path, w in one.items() if not np.array_equal(w, two[path])]
        assert not differ, f"two applications differ in {', '.join(differ)}"

    @check
    def test_it_changes_no_more_than_it_says(self) -> None:
        """The weights that programs compute with are within `bounds`; without bounds, outputs are those of the source."""
        source, found = self.source(), self._applied()
        bounds = self.plugin().bounds(source)
        if bounds is None:
            _close(
                _called(found), _called(source), bound_of(source.dtype), "it has no bounds, and so computes the same"
            )
            return
        restore = as_stored if found.restore is source.restore else found.restore
        now, most = {path: np.asarray(w) for path, w in restore(found.weights).items()}, dict(bounds)
        for path, weight in source.weights.items():
            assert path in now, f"restore gives no {path}"
            assert now[path].shape == weight.shape, f"restore gives {path} the shape {now[path].shape}"
            off = np.abs(now[path].astype(np.float64) - weight.astype(np.float64))
            wide = np.argwhere(~(off <= most.get(path, np.zeros(1)) * (1 + 1e-6)))
            assert not len(wide), (
                f"{path} is off by {off[tuple(wide[0])]:.3g} at {wide[0].tolist()}, more than bounds says"
            )
        same = dataclasses.replace(
            source, weights={path: now[path].astype(w.dtype) for path, w in source.weights.items()}
        )
        _close(_called(found), _called(same), bound_of(source.dtype), "programs compute with what restore gives")

    def _applied(self, source: Exported | None = None) -> Exported:
        try:
            return self.plugin().apply(self.source() if source is None else source)
        except ExportError as error:
            skip(f"it refuses the kit's example: define source() in a subclass of TransformKit ({error})")


def _perceptron() -> Exported:
    """tanh(x A + a) B, its weights by path, for any batch."""
    draw = np.random.default_rng(0).normal
    weights: dict[str, np.ndarray] = {
        "up/kernel": draw(size=(INPUTS, HIDDEN)).astype(np.float32) / 16,
        "up/bias": draw(size=HIDDEN).astype(np.float32),
        "head/kernel": draw(size=(HIDDEN, OUTPUTS)).astype(np.float32) / 16,
    }

    def function(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        hidden = jax.numpy.tanh(inputs["x"] @ weights["up/kernel"] + weights["up/bias"][None])
        return {"output": hidden @ weights["head/kernel"]}

    signature = Signature(
        {"x": Tensor(("batch", INPUTS), "float32")}, {"output": Tensor(("batch", OUTPUTS), "float32")}
    )
    rows = {"x": draw(size=(ROWS, INPUTS)).astype(np.float32)}
    spec = DataSpec({"x": ArraySpec((INPUTS,), "float32")})
    return Exported(None, spec, [Program("forward", function, signature)], {"batch": Dim(1, 8)}, weights, rows, {})


def _called(found: Exported) -> dict[str, np.ndarray]:
    """forward of the source's examples."""
    output = jax.jit(found.program("forward").function)(dict(found.weights), dict(found.examples))
    return {name: np.asarray(array) for name, array in output.items()}


def _close(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray], bound: float, said: str) -> None:
    for name, array in two.items():
        off = np.max(np.abs(one[name] - array), initial=0.0)
        assert off <= bound * np.max(np.abs(array), initial=0.0), f"{said}, but {name} is off by {off:.3g}"


def _same(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, two[name]) for name, array in one.items())
